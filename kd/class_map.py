"""A teacher that speaks of its own classes: what its word means in the student's.

    class_map = ClassMap.by_groups(student_names, teacher_names, {"animal": ["cat", "dog"], ...})
    mapped = class_map.logits(teacher_logits)        # (N, K, h, w), K classes that the teacher knows

`kd.class_matching` makes one of two class lists and a file.

The logit of a student's class is the log-sum-exp of the teacher's logits in its group: the softmax of these is then
exactly the sum of the teacher's probabilities in the group, over those of all groups. Where the teacher says a class
that belongs to no group, it has no say about the student's classes, and soft losses leave the position out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from basics.device import constant_on

NOTHING = -1  # what a teacher's class without a group is in the student's classes
NEVER = -1e4  # the logit of a class that the teacher cannot say: finite, for tiles are blended by weights that may be 0


@dataclass(frozen=True)
class ClassMap:
    """From a teacher's classes to a student's.

    Attributes:
        student_names, teacher_names: the two class lists.
        meaning: for each of the teacher's classes the student's class it belongs to, or `NOTHING`.
    """

    student_names: tuple[str, ...]
    teacher_names: tuple[str, ...]
    meaning: tuple[int, ...]

    @classmethod
    def by_groups(
        cls, student_names: Sequence[str], teacher_names: Sequence[str], groups: Mapping[str, Iterable[str]]
    ) -> ClassMap:
        """The map of ``groups``: student's class -> the teacher's classes that mean it.

        Raises:
            KeyError: a name that is in neither list.
            ValueError: a teacher's class in two groups.
        """
        classes = {name: index for index, name in enumerate(student_names)}
        meaning_of: dict[str, int] = dict.fromkeys(teacher_names, NOTHING)
        for name, members in groups.items():
            for member in members:
                if meaning_of[member] != NOTHING:
                    raise ValueError(f"{member!r} is in two groups")
                meaning_of[member] = classes[name]
        return cls(tuple(student_names), tuple(teacher_names), tuple(meaning_of[name] for name in teacher_names))

    @classmethod
    def identity(cls, names: Sequence[str]) -> ClassMap:
        """The map of a teacher with the student's own classes."""
        return cls(tuple(names), tuple(names), tuple(range(len(names))))

    @cached_property
    def known(self) -> tuple[int, ...]:
        """The student's classes that the teacher can say, in their order."""
        return tuple(sorted(set(self.meaning) - {NOTHING}))

    @property
    def groups(self) -> dict[str, list[str]]:
        """The teacher's classes by the student's class that they mean; none for one that the teacher cannot say."""
        return {
            name: [self.teacher_names[place] for place in self._members(index)]
            for index, name in enumerate(self.student_names)
        }

    @property
    def unknown(self) -> list[str]:
        """The student's classes that the teacher cannot say."""
        return [name for index, name in enumerate(self.student_names) if index not in self.known]

    @property
    def unheard(self) -> list[str]:
        """The teacher's classes that mean nothing here."""
        return [name for name, index in zip(self.teacher_names, self.meaning, strict=True) if index == NOTHING]

    def logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The teacher's logits (N, C_teacher, h, w) -> logits of the `known` classes (N, K, h, w), float32."""
        logits = logits.float()
        groups = (constant_on(logits.device, group, torch.int64) for group in self._known_members)
        members = (logits.index_select(1, group) for group in groups)
        return torch.stack([group.logsumexp(dim=1) for group in members], dim=1)

    def whole_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """As `logits`, of all of the student's classes (N, C, h, w); `NEVER` for those that the teacher cannot say."""
        mapped = logits.new_full((len(logits), len(self.student_names), *logits.shape[2:]), NEVER, dtype=torch.float32)
        mapped[:, list(self.known)] = self.logits(logits)
        return mapped

    def speaks(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Where the teacher's most likely class means anything here, bool (N, h, w); None: it always does."""
        if NOTHING not in self.meaning:
            return None
        return constant_on(logits.device, self.meaning, torch.int64)[logits.max(1)[1]] != NOTHING

    @cached_property
    def _known_members(self) -> list[tuple[int, ...]]:
        return [tuple(self._members(index)) for index in self.known]

    def _members(self, index: int) -> list[int]:
        """The teacher's classes that mean the student's class ``index``."""
        return [place for place, meaning in enumerate(self.meaning) if meaning == index]
