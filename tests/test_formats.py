"""Each format in its own runtime: the same classes as the checkpoint. What is not installed here is skipped."""

import base64
import io
import json
import re
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import export
from basics.checkpoint import save_atomic
from basics.errors import UserError
from basics.files import replacing_folder
from deploy.export_checks import smooth_pictures
from deploy.exported import ExportedModel
from deploy.formats import FORMATS, choose_format, load_exported, stored_bytes
from deploy.segmenter import load_segmenter
from deploy.web_format import PAGE, PARTS
from networks.onnx_session import open_session
from segdata.pictures import read_picture
from tests.small import SmallStudent, in_zoo, small_checkpoint
from tests.test_export import by_hand, raw_pictures, run_export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """A `SmallStudent` in a folder with a space and letters beyond ASCII."""
    path = tmp_path_factory.mktemp("formats") / "mit Straße" / "best.pth"
    save_atomic(small_checkpoint(), path)
    with in_zoo():
        yield path


def expected(network, pictures):
    with torch.no_grad():
        return network(by_hand(pictures)).numpy()


# -- ONNX -----------------------------------------------------------------------------------------


VERSIONS = [
    ((), 18, 8),
    (("--opset", "13"), 13, 7),
    (("--opset", "17"), 17, 8),
    (("--ir-version", "9"), 18, 9),
    (("--opset", "21"), 21, 10),
]


@pytest.mark.parametrize(("options", "opset", "ir"), VERSIONS)
def test_opset_and_ir_version(best, network, tmp_path, options, opset, ir):
    """What onnx's own checker accepts as of that opset, with the network's logits at a size of its own."""
    path = run_export(best, tmp_path / "a.onnx", *options)
    model = onnx.load(path)
    assert model.ir_version == ir
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    onnx.checker.check_model(model, full_check=True)
    pictures = raw_pictures(2, 37, 51)
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"images": by_hand(pictures).numpy()})
    np.testing.assert_allclose(logits, expected(network, pictures), atol=1e-4)


def test_no_hard_sigmoid_is_left_for_opencv_to_mistake(best, tmp_path):
    operators = {node.op_type for node in onnx.load(run_export(best, tmp_path / "a.onnx")).graph.node}
    assert "HardSigmoid" not in operators
    assert {"Clip", "HardSwish"} <= operators
    old = {node.op_type for node in onnx.load(run_export(best, tmp_path / "b.onnx", "--opset", "13")).graph.node}
    assert not {"HardSigmoid", "HardSwish"} & old  # HardSwish came with opset 14


def test_one_size(best, network, tmp_path):
    path = run_export(best, tmp_path / "a.onnx", "--size", "48x80")
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == [1, 3, 48, 80]
    assert session.get_outputs()[0].shape == [1, 3, 48, 80]
    assert not {"Shape", "Pad", "Slice"} & {node.op_type for node in onnx.load(path).graph.node}
    pictures = raw_pictures(1, 48, 80)
    (logits,) = session.run(None, {"images": by_hand(pictures).numpy()})
    np.testing.assert_allclose(logits, expected(network, pictures), atol=1e-4)


def test_opencv(best, network, tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = run_export(best, tmp_path / "a.onnx", "--size", "64x96")
    net = cv2.dnn.readNetFromONNX(str(path))
    pictures = raw_pictures(1, 64, 96)
    net.setInput(by_hand(pictures).numpy())
    np.testing.assert_allclose(net.forward(), expected(network, pictures), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--opset", "12"), "--opset must be from 13 to 2"),
        (("--ir-version", "99"), "--ir-version must be from 4 to"),
        (("--format", "litert"), r"ends in \.tflite"),
        (("--format", "onxx"), "did you mean 'onnx'"),
        (("--format", "web", "--output", "page", "--uint8"), "leave out --uint8 and --argmax"),
    ],
)
def test_mistakes_are_named_before_the_work(best, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        run_export(best, tmp_path / "a.onnx", *options)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(best, tmp_path, monkeypatch):
    """Python refuses to import a module whose place in `sys.modules` holds None."""
    import sys

    for module, options in (
        ("openvino", ("a.xml",)),
        ("litert_torch", ("a.tflite", "--size", "64x64")),
        ("executorch", ("a.pte", "--size", "64x64")),
        ("coremltools", ("a.mlpackage", "--size", "64x64")),
    ):
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=f"pip install {module.replace('_', '-')}") as caught:
            run_export(best, tmp_path / options[0], *options[1:])
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# -- a file of one size, used on pictures of another ----------------------------------------------


class Recorder(ExportedModel):
    """Gives back its images as logits."""

    def run(self, images):
        self.seen = images
        return images


def test_pictures_are_fitted_to_the_files_size(plain_card):
    model = Recorder(plain_card, torch.device("cpu"), (64, 128))
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(model(images), images)  # no resizing: filled on the right with the mean colour
    assert model.seen.shape == (1, 3, 64, 128)
    assert not model.seen[..., 64:].any()
    images = torch.full((2, 3, 256, 256), 0.25)
    images[1] = -1
    torch.testing.assert_close(model(images), images)  # shrunk to 64 x 64 and enlarged again, one by one
    assert not model.seen[..., 64:].any()


@pytest.fixture
def plain_card(best, tmp_path):
    return load_exported(run_export(best, tmp_path / "a.pt2")).card


# -- other runtimes -------------------------------------------------------------------------------


def logits_of(path, pictures):
    return load_exported(path).run(by_hand(pictures)).detach().numpy()


@pytest.mark.parametrize("size", [(), ("--size", "48x80")])
def test_pt2(best, network, tmp_path, size):
    pictures = raw_pictures(1, 48, 80)
    path = run_export(best, tmp_path / "a.pt2", *size)
    assert load_exported(path).fitted_size == ((48, 80) if size else None)
    np.testing.assert_allclose(logits_of(path, pictures), expected(network, pictures), atol=1e-4)


def test_openvino(best, network, tmp_path):
    """By OpenVINO alone, with the hint that its documentation names, then by this project's reader."""
    openvino = pytest.importorskip("openvino")
    path = run_export(best, tmp_path / "mit Straße.xml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mit Straße.bin", "mit Straße.xml"]
    assert stored_bytes(path) == sum(file.stat().st_size for file in tmp_path.iterdir())
    pictures = raw_pictures(2, 33, 70)
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(by_hand(pictures).numpy())[0], expected(network, pictures), atol=1e-4)
    np.testing.assert_allclose(logits_of(path, pictures), expected(network, pictures), atol=1e-4)
    path.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match=r"Straße\.bin: no such file"):
        load_exported(path)


@pytest.mark.parametrize(("suffix", "module"), [(".tflite", "litert_torch"), (".pte", "executorch")])
def test_formats_of_one_size(best, network, tmp_path, suffix, module):
    pytest.importorskip(module)
    path = run_export(best, tmp_path / f"a{suffix}", "--size", "48x80")
    model, pictures = load_exported(path), raw_pictures(1, 48, 80)
    assert (model.fitted_size, model.card.class_names) == ((48, 80), small_checkpoint()["class_names"])
    np.testing.assert_allclose(logits_of(path, pictures), expected(network, pictures), atol=1e-4)


@pytest.mark.parametrize("form", [(), ("--uint8", "--argmax")])
def test_coreml_is_converted_and_says_that_it_was_not_run(best, tmp_path, capsys, form):
    coreml = pytest.importorskip("coremltools")
    path = run_export(best, tmp_path / "a.mlpackage", "--size", "48x80", *form)
    description = coreml.utils.load_spec(str(path)).description
    assert description.metadata.userDefined["model"] == "small"
    kind = description.input[0].type
    assert (kind.imageType.width if form else kind.multiArrayType.shape[3]) == 80
    if not FORMATS["coreml"].runs_here:
        assert "not compared with the checkpoint" in capsys.readouterr().out
        with pytest.raises(UserError, match="Apple's systems alone"):
            load_exported(path)


# -- the page -------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path):
    """A folder with files that are called like onnxruntime-web's."""
    folder = tmp_path / "runtime" / "dist"
    folder.mkdir(parents=True)
    for part in PARTS:
        (folder / part).write_bytes(part.encode())
    return folder.parent


def test_a_page_is_complete_and_holds_the_network(best, network, tmp_path, stand_in):
    folder = run_export(best, tmp_path / "my page", "--format", "web", "--web-runtime", stand_in)
    page = (folder / PAGE).read_text(encoding="utf-8")
    assert all((folder / name).is_file() for name in re.findall(r'src="([^"]+)"', page))
    assert not re.search(r"https?://", page)  # offline
    pictures = raw_pictures(1, 40, 56)
    np.testing.assert_allclose(logits_of(folder, pictures), expected(network, pictures), atol=1e-4)
    run_export(best, folder, "--format", "web", "--web-runtime", stand_in)  # over the older one
    assert not list(tmp_path.glob(".*"))


def test_a_runtime_without_its_parts_is_refused(best, tmp_path, stand_in):
    (stand_in / "dist" / PARTS[1]).unlink()
    with pytest.raises(UserError, match=re.escape(PARTS[1])):
        run_export(best, tmp_path / "page", "--format", "web", "--web-runtime", stand_in)
    assert not (tmp_path / "page").exists()


# What the page finds goes to a server of the test's own: a page from a disk may send, though not fetch.
IN_THE_PAGE = """<script>
ready.then(async () => {
  const file = new File([bytes("%s")], "picture.png", { type: "image/png" });
  let found;
  try { found = await (async () => { %s })(); } catch (error) { found = { error: String(error) }; }
  await fetch("http://127.0.0.1:%d/", { method: "POST", mode: "no-cors", body: JSON.stringify(found) });
});
</script></html>"""
WHAT_IS_SHOWN = """
  status: $("status").textContent, height: mask?.height, classes: mask && Array.from(mask.classes),
  legend: $("legend").textContent, picture: picture?.toDataURL("image/png")
"""


class Listener(BaseHTTPRequestHandler):
    """Keeps what is sent to it."""

    def do_POST(self):
        self.server.found = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass


def in_a_browser(folder, picture, script, *options):
    """What the asynchronous ``script`` gives in the page ``folder``, opened from the disk in headless Chromium.

    Args:
        picture: uint8 (3, H, W), the script's ``file``.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium")
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG")
    page = (folder / PAGE).read_text(encoding="utf-8")
    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        server.found, server.timeout = "{}", 120
        test = IN_THE_PAGE % (base64.b64encode(file.getvalue()).decode(), script, server.server_port)
        (folder / "test.html").write_text(page.replace("</html>", test), encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
        command += ["--disable-features=LocalNetworkAccessChecks", f"--user-data-dir={folder.parent / 'profile'}"]
        url = (folder / "test.html").as_uri()
        with subprocess.Popen(
            [*command, *options, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            server.handle_request()
            running.terminate()
    return json.loads(server.found)


@pytest.fixture(scope="module")
def web_runtime(tmp_path_factory):
    """The real package onnxruntime-web, fetched once."""
    from deploy import web_format

    try:
        return web_format._fetch(tmp_path_factory.mktemp("npm"))
    except UserError as error:
        pytest.skip(str(error))


def as_predicted(model, picture, side):
    """The classes of uint8 (1, 3, H, W) with ``side`` pixels on the longer side, by PyTorch alone."""
    height, width = picture.shape[-2:]
    small = [int(pixels * side / max(height, width) + 0.5) for pixels in (height, width)]
    with torch.no_grad():
        images = F.interpolate(by_hand(picture), small, mode="bilinear", antialias=True)
        return F.interpolate(model(images), (height, width), mode="bilinear").argmax(1)[0].numpy()


@pytest.mark.parametrize(
    ("input_size", "size", "side"),
    [(0, (), 84), (48, (), 48), (128, (), 128), (64, ("--size", "64x64"), 64)],  # as it is, shrunk, enlarged, fitted
)
def test_a_browser_finds_what_the_checkpoint_does(best, network, tmp_path, web_runtime, input_size, size, side):
    """The page from the disk in headless Chromium; the picture as if dropped onto it."""
    checkpoint = tmp_path / "best.pth"
    save_atomic(small_checkpoint() | {"input_size": input_size}, checkpoint)
    folder = run_export(checkpoint, tmp_path / "page", "--format", "web", "--web-runtime", web_runtime, *size)
    pictures = smooth_pictures(1, 60, 84)
    found = in_a_browser(folder, pictures[0], f"await open(file); return {{ {WHAT_IS_SHOWN} }};")
    assert "classes" in found, found
    classes = np.array(found["classes"], np.uint8).reshape(found["height"], -1)
    # Beside a picture in a square the network sees grey rather than nothing.
    assert (classes == as_predicted(network, pictures, side)).mean() > (0.95 if size else 0.999)
    assert (classes == load_segmenter(folder, "cpu").mask(pictures[0]).numpy()).mean() > 0.999
    assert len(np.unique(classes)) > 1


def test_a_transparent_picture_lies_on_white_in_the_page_too(best, tmp_path, web_runtime):
    folder = run_export(best, tmp_path / "page", "--format", "web", "--web-runtime", web_runtime)
    rgb = smooth_pictures(1, 60, 84)[0].permute(1, 2, 0).numpy()
    alpha = np.linspace(0, 255, 84).astype(np.uint8)[None].repeat(60, 0)
    rgba = torch.from_numpy(np.dstack([rgb, alpha])).permute(2, 0, 1)
    found = in_a_browser(folder, rgba, f"await open(file); return {{ {WHAT_IS_SHOWN} }};")
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a.png")
    expected = load_segmenter(folder, "cpu").mask(read_picture(tmp_path / "a.png")).numpy()
    classes = np.array(found["classes"], np.uint8).reshape(60, 84)
    assert (classes == expected).mean() > 0.99  # a browser rounds where it lays one on the other


def test_a_page_takes_no_other_folders_place(best, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "last.pth").touch()
    monkeypatch.chdir(tmp_path)
    for output, words in ((runs, r"holds other files \(last\.pth\)"), (".", "holds other files")):
        with pytest.raises(UserError, match=words):
            export_main([best, "--format", "web", "--output", output])
    assert (runs / "last.pth").exists()
    (runs / "last.pth").rename(runs / ".DS_Store")  # as the Finder leaves it where it has looked
    assert choose_format("web", runs) is FORMATS["web"]
    monkeypatch.chdir(tmp_path.joinpath("empty").mkdir() or tmp_path / "empty")
    with pytest.raises(UserError, match="is the current folder"):
        export_main([best, "--format", "web", "--output", "."])


def test_threads_of_onnx_runtime_take_no_core_between_two_runs(best, tmp_path):
    """PyTorch resizes the logits there."""
    options = open_session(run_export(best, tmp_path / "a.onnx")).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--format", "pt2", "--opset", 13], "--opset and --ir-version are ONNX's"),
        (["--format", "pt2", "--ir-version", 8], "are ONNX's"),
        (["--format", "onnx", "--web-runtime", "x.tgz"], "--web-runtime is for --format web"),
    ],
)
def test_options_of_another_format_are_refused(best, more, words):
    with pytest.raises(UserError, match=words):
        export_main([best, *more])


WITH_A_CAMERA = """
  $("camera").click();
  const until = async (done) => { while (!done()) { if ($("status").className) throw Error($("status").textContent);
    await new Promise((then) => setTimeout(then, 20)); } };
  await until(() => times.length > 1);
  const track = stream.getTracks()[0], seen = { running: $("camera").textContent, WHAT_IS_SHOWN };
  await open(file);  // while frames are computed
  const then = { stopped: $("camera").textContent, track: track.readyState, WHAT_IS_SHOWN };
  $("camera").click();
  await until(() => stream && picture.width === 640);
  $("camera").click();
  await work;
  return [seen, then, { again: picture.width, stream }];
""".replace("WHAT_IS_SHOWN", WHAT_IS_SHOWN)


def test_the_camera(best, network, tmp_path, web_runtime):
    """Chromium's stand-in for a camera: frames as the checkpoint sees them, until a picture is dropped in."""
    folder = run_export(best, tmp_path / "page", "--format", "web", "--web-runtime", web_runtime)
    pictures = smooth_pictures(1, 60, 84)
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    found = in_a_browser(folder, pictures[0], WITH_A_CAMERA, *flags)
    assert isinstance(found, list), found
    frame = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[0]["picture"].partition(",")[2]))).convert("RGB"))
    assert frame.shape == (480, 640, 3)
    frame = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None]
    for shown, picture, side in ((found[0], frame, 512), (found[1], pictures, 84)):
        classes = np.array(shown["classes"], np.uint8).reshape(shown["height"], -1)
        assert (classes == as_predicted(network, picture, side)).mean() > 0.999
    assert "(512 x 384)" in found[0]["status"]
    assert (found[0]["running"], found[1]["stopped"], found[1]["track"]) == ("Stop", "Camera", "ended")
    assert found[2] == {"again": 640, "stream": None}


def test_without_a_camera_the_page_says_so(best, tmp_path, web_runtime):
    folder = run_export(best, tmp_path / "page", "--format", "web", "--web-runtime", web_runtime)
    script = f"await startCamera(); return {{ {WHAT_IS_SHOWN} , button: $('camera').textContent }};"
    found = in_a_browser(folder, smooth_pictures(1, 60, 84)[0], script)
    assert found["status"].startswith("no camera: ")
    assert found["button"] == "Camera"


# -- names and folders ----------------------------------------------------------------------------


def test_formats_are_found_by_name_or_suffix(tmp_path):
    assert choose_format(None, None) is FORMATS["onnx"]
    assert choose_format("web", None).beside(tmp_path / "best.pth") == tmp_path / "best_web"
    for kind in FORMATS.values():
        assert not kind.suffix or choose_format(None, tmp_path / f"a{kind.suffix}") is kind
    with pytest.raises(UserError, match="writes a folder"):
        choose_format("web", tmp_path / "a.onnx")


def open_elsewhere() -> None:
    raise PermissionError(13, "open in another program")


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_older_folder_survives_an_error(tmp_path, monkeypatch):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "old").write_text("old")
    with pytest.raises(ValueError), replacing_folder(tmp_path / "page") as folder:
        (folder / "new").write_text("new")
        raise ValueError
    assert [path.name for path in tmp_path.rglob("*")] == ["page", "old"]
    with replacing_folder(tmp_path / "page") as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["page", "new"]
    with monkeypatch.context() as patch:
        replace = Path.replace
        patch.setattr(Path, "replace", lambda path, to: open_elsewhere() if ".tmp" in path.name else replace(path, to))
        with pytest.raises(UserError, match="cannot write"), replacing_folder(tmp_path / "page") as folder:
            (folder / "newer").write_text("newer")
    assert [path.name for path in tmp_path.rglob("*")] == ["page", "new"], "Windows refuses to rename what is open"
    with monkeypatch.context() as patch:  # Ctrl-C between the two renames
        patch.setattr(Path, "replace", lambda path, to: interrupt() if ".tmp" in path.name else replace(path, to))
        with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "page") as folder:
            (folder / "newer").write_text("newer")
    assert [path.name for path in tmp_path.rglob("*")] == ["page", "new"]
    (tmp_path / "page").rename(tmp_path / ".page.old")  # as a kill between the two renames leaves it
    with pytest.raises(ValueError), replacing_folder(tmp_path / "page"):
        raise ValueError
    assert [path.name for path in tmp_path.rglob("*")] == ["page", "new"]
    (tmp_path / "file").write_text(json.dumps(1))
    with pytest.raises(UserError, match="a file of that name"), replacing_folder(tmp_path / "file"):
        pass


# -- all of them ----------------------------------------------------------------------------------


def test_the_table_of_all_formats(demo_data, best, tmp_path, capsys, stand_in):
    """Two lines at least, each with what its file weighs; what is not installed is left out with its reason."""
    from dataset import build_dataset
    from scoring.metrics import ConfusionMatrix
    from zoo import model_file_dict

    data = build_dataset("demo", demo_data, "val")
    model = SmallStudent(data.num_classes)
    save_atomic(model_file_dict("small", model, data), tmp_path / "demo.pth")
    options = ["--format", "all", "--rounds", "1", "--size", "48x64", "--web-runtime", stand_in, "--score-images", "2"]
    folder = run_export(tmp_path / "demo.pth", tmp_path / "all", *options, "--dataset", "demo", "--data-dir", demo_data)
    table = capsys.readouterr().out.partition("\nruntime ")[2].splitlines()
    rows = {line.split("  ")[0]: line.split() for line in table[1:] if not line.startswith(("left out", "m"))}
    assert {"PyTorch fp32", "ONNX Runtime fp32", "torch.export fp32", "page, by ONNX Runtime fp32"} <= set(rows)
    onnx_file = folder / "demo.onnx"
    assert f"{onnx_file.stat().st_size / 1e6:.2f}" in rows["ONNX Runtime fp32"]
    confusion = ConfusionMatrix(data.num_classes)
    for sample in (data[0], data[3]):  # two of six, spread
        confusion.update(load_segmenter(onnx_file, "cpu").mask(sample["image"]).long(), sample["mask"])
    *_, miou, alike = rows["ONNX Runtime fp32"]
    assert miou == f"{100 * confusion.scores().miou:.2f}" and float(alike) > 99.9
    assert "2 pictures of demo/val" in "\n".join(table)
    for name, kind in FORMATS.items():
        assert (f"{kind.timed_as} fp32" in rows) != any(line.startswith(f"left out: {name}: ") for line in table), name
    with pytest.raises(UserError, match="needs --output DIR"):
        export_main([best, "--format", "all"])
    with pytest.raises(UserError, match="--dataset is for --format all"):
        export_main([best, "--dataset", "demo"])


def export_main(arguments):
    export.main(export.get_args_parser().parse_args(list(map(str, arguments))))
