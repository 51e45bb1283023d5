# make demo   install, make the demo data, train a teacher, a student of few labels, and one that the teacher helps
# make test   install everything and run all fast tests, a process a core (at most four)
# make gpu    what only a CUDA GPU can show: its tests, then what training costs there (10 minutes)
# make lint   check style, formatting and types
#
# Needs a POSIX shell and Python >= 3.10; another interpreter: make demo PYTHON=python3.12
# For a smaller install on a machine without a GPU:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
VENV = .venv
RUN = $(VENV)/bin/python
PIP = $(RUN) -m pip --disable-pip-version-check install $(PIP_FLAGS)

# The demo: small pictures, from scratch, so that it needs neither a network nor a GPU.
TEACHER_EPOCHS = 16
STUDENT_EPOCHS = 12
DEMO_DATA = --dataset demo --data-dir data
DEMO_TRAIN = $(RUN) train_kd.py $(DEMO_DATA) --student-weights none --crop-size 128 --batch-size 16 --lr 3e-3 \
  --eval-every 5 --resume auto
DEMO_TEACHER = checkpoints/demo_teacher/best.pth
DEMO_STUDENTS = checkpoints/demo_labels/best.pth checkpoints/demo_unlabelled/best.pth
DEMO_LABELS = 40
DEMO_STUDENT = $(DEMO_TRAIN) --student compact --labels $(DEMO_LABELS) --epoch-images 400 --epochs $(STUDENT_EPOCHS)

help:
	@sed -n 's/^# make /make /p' Makefile

# A file in the environment says which requirements it holds: a second call installs nothing.
$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo 'error: Python >= 3.10 is needed; name one that you have: make demo PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core-installed: $(VENV)/made requirements.txt
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/all-installed: $(VENV)/made requirements.txt requirements-extra.txt
	$(PIP) -r requirements.txt -r requirements-extra.txt
	@touch $@ $(VENV)/core-installed

# --resume auto: what an interrupted demo has trained already is kept.
demo: $(VENV)/core-installed
	@echo '== 1/5 the teacher: FastLiteSSNet, which computes ten times what the student does, on 400 pictures of its own'
	$(DEMO_TRAIN) --train-split teacher --name demo_teacher --student fastlitessnet --epochs $(TEACHER_EPOCHS)
	@echo '== 2/5 a compact student taught by $(DEMO_LABELS) masks alone'
	$(DEMO_STUDENT) --name demo_labels
	@echo '== 3/5 the same student, and the same masks; the teacher speaks of 360 more pictures, which nobody labelled'
	$(DEMO_STUDENT) --name demo_unlabelled --unlabelled train --alpha 1 --temperature 1 \
	  --teacher $(DEMO_TEACHER) --cache-teacher
	@echo '== 4/5 all three on the validation split'
	$(RUN) evaluate.py $(DEMO_TEACHER) $(DEMO_STUDENTS) $(DEMO_DATA) --csv checkpoints/demo.csv
	@echo '== 5/5 pictures'
	$(RUN) visualize.py $(DEMO_STUDENTS) $(DEMO_DATA) --teacher $(DEMO_TEACHER) --overlays \
	  --output-dir checkpoints/demo_pictures
	@echo '== done: look at checkpoints/demo_pictures/images.png and checkpoints/demo_*/curves.png'

# In the order of names: after the files from `q` on, no process that was forked could train.
test: $(VENV)/all-installed
	$(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# With RUN=python3, say, nothing is installed: that Python has what it needs. A failing test does not keep the bench back.
gpu: $(if $(filter $(VENV)/bin/python,$(RUN)),$(VENV)/all-installed)
	@$(RUN) -m pytest -m gpu -rs tests/test_gpu.py; tests=$$?; \
	if $(RUN) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  set -x; $(RUN) bench.py --device cuda --crop-size 384 --batch-size 16 --json checkpoints/bench_gpu.json; \
	else \
	  echo 'bench.py --device cuda is left out: there is no CUDA GPU here'; \
	fi; exit $$tests

lint: $(VENV)/all-installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# What the demo made, so that it starts anew; the environment stays.
clean-demo:
	rm -rf data/demo checkpoints/demo_* checkpoints/demo.csv

.PHONY: help demo test gpu lint clean-demo
