"""The command line as a user types it: what is printed, where, and the exit code."""

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

from burnish import cli, imports
from burnish.errors import RecipeError
from burnish.methods.table import METHODS
from burnish.run.outset import Facilities
from burnish.screen import _paragraph
from conftest import burnish, fit_in_a_process, write_shapes

TINY = ["--model", "random:test_resnet", "--image-size", "64", "--epochs", "2", "--budget", "none"]


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    cli.main(["fit", str(shapes), *TINY, "--out", str(folder), "--quiet"])
    return folder


def test_fit_prints_the_verdict_and_where_everything_is(shapes, tmp_path, capsys):
    code, out, err = burnish("fit", shapes, *TINY, "--out", tmp_path / "run", capsys=capsys)
    assert code == 0
    assert err == ""
    assert re.match(r" *[0-9.]+ s  [0-9]+ images of [0-9]+ classes, into .*run; loading PyTorch\n", out)
    for words in ("probe saved at", "epoch 2 at 64 px", "95 % interval", "report", "burnish predict"):
        assert words in out
    assert re.search(r"(Fine-tuning (helped|hurt)|Not proven that fine-tuning helped): ", out)


def test_quiet_prints_only_the_result(shapes, tmp_path, capsys):
    _, out, _ = burnish("fit", shapes, "--quiet", *TINY, "--out", tmp_path / "run", capsys=capsys)
    assert "epoch" not in out
    assert "95 % interval" in out


def test_json_on_stdout_is_the_result_and_nothing_else(shapes, tmp_path, capsys):
    _, out, err = burnish("fit", shapes, "--json", *TINY, "--out", tmp_path / "run", capsys=capsys)
    facts = json.loads(out)
    assert facts["verdict"]["probe"]["n"] == facts["counts"]["test"]
    assert "epoch 1" in err


def test_predict_writes_csv_to_the_standard_output(run, shapes, capsys):
    code, out, err = burnish("predict", run, shapes / "red", "--csv", "-", capsys=capsys)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, err, len(rows)) == (0, "", 20) and list(rows[0]) == ["path", "label", "probability", "problem"]
    code, out, err = burnish("predict", run, shapes / "red", "--csv", "", capsys=capsys)
    assert (code, out) == (2, "") and "what is said after --csv is empty" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fit", "photos", "--seed", "abc"], "'--seed': 'abc', expected a whole number"),
        (["fit", "photos", "--mixup", "much"], "'--mixup': 'much', expected a number"),
        (["board", "run", "--port", "99999"], "'--port': '99999', expected less than or equal to 65535"),
        (
            ["fit", "photos", "--seed", "99999999999999999999"],
            "expected a whole number from 0 to 9,223,372,036,854,775,807",
        ),
    ],
)
def test_a_number_that_is_none_or_beyond_its_range_is_told_with_what_came_and_what_was_expected(words, told, capsys):
    code, _, err = burnish(*words, capsys=capsys)
    assert code == 2 and told in err


def test_predict_prints_a_line_an_image_and_writes_csv(run, shapes, tmp_path, capsys):
    code, out, _ = burnish("predict", run, shapes / "red", "--top", "2", capsys=capsys)
    assert code == 0
    assert len(out.splitlines()) == 20
    code, out, _ = burnish("predict", run, shapes / "red", "--csv", tmp_path / "a.csv", "--top", "3", capsys=capsys)
    rows = list(csv.DictReader(open(tmp_path / "a.csv", encoding="utf-8", newline="")))
    assert len(rows) == 20
    assert sum(float(rows[0][f"probability{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1.0, abs=1e-4)


def test_predict_leaves_with_1_when_an_image_is_unreadable_and_names_it(run, shapes, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    code, out, err = burnish("predict", run, shapes / "red" / "000.png", tmp_path / "bad.png", capsys=capsys)
    assert code == 1
    assert "bad.png\tunreadable: not an image" in out
    assert "1 of the images could not be read" in err


def test_evaluate_says_of_one_file_that_it_could_not_be_used(run, images, capsys):
    (images / "red" / "broken.png").write_bytes(b"none")
    assert "\n1 file could not be used\n  red/broken.png: " in burnish("evaluate", run, images, capsys=capsys)[1]


def test_evaluate_prints_scores(run, shapes, capsys):
    code, out, _ = burnish("evaluate", run, shapes, capsys=capsys)
    assert code == 0
    assert re.search(r"accuracy +\d+\.\d % +95 % interval", out)
    _, out, _ = burnish("evaluate", run, shapes, "--json", capsys=capsys)
    assert json.loads(out)["scores"]["accuracy"]["n"] == 60


def test_report_models_methods_and_doctor_answer(run, capsys):
    assert burnish("report", run, capsys=capsys)[1].strip().endswith("report.html")
    assert "resnet50" in burnish("models", "resnet50", capsys=capsys)[1]
    assert json.loads(burnish("models", "lite0", "--json", capsys=capsys)[1])[0]["where"] == "embedded"
    listed = burnish("methods", capsys=capsys)[1]
    assert all(f"{name} " in listed for name in [*METHODS, "auto"])
    assert "arXiv:2202.10054" in burnish("methods", "full", capsys=capsys)[1]
    code, out, _ = burnish("doctor", capsys=capsys)
    assert code == 0
    assert "embedded weights" in out
    assert "sha256" in out


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        *([one.callback.__name__, "--help"] for one in cli.app.registered_commands),
    ],
)
def test_every_help_page_fits_80_columns(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = burnish(*words, capsys=capsys)
    assert code == 0
    assert "Usage" in out
    assert max(map(len, out.splitlines())) <= 80


def test_one_of_several_processes_of_a_launcher_says_that_it_works_alone(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert burnish("methods", capsys=capsys)[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "4")
    code, _, err = burnish("methods", capsys=capsys)
    assert code == 2
    assert re.search(r"one of 4 processes of a job .*without a launcher.*--device cuda:1", err)
    with pytest.raises(RecipeError, match="one of 4 processes"):
        Facilities.of("auto", "off", "cpu", strict=False)


BAD_INPUT = [
    (["fit", "{tmp}/nothing"], r"There is no .*nothing.*Give a folder"),
    (["fit", "{tmp}/empty"], r"holds no .*image"),
    (["fit", "{tmp}/one"], r"the one class 'a', expected at least two"),
    (["fit", "{tmp}/few"], r"'b' has 1"),
    (["fit", "{tmp}/good", "--budget", "10x"], r"budget is '10x', expected a time with a unit"),
    (["fit", "{tmp}/good", "--model", "resnet5"], r"no model 'resnet5' \(nearest: resnet50"),
    (["fit", "{tmp}/good", "--method", "ful"], r"no method 'ful' \(nearest: full"),
    (["fit", "{tmp}/good", "--lr", "0.1"], r"No such option: --lr; here it is --learning-rate"),
    (["fit", "{tmp}/good", "--flip", "maybe", "--epochs", "0"], r"epochs is 0.*flip is 'maybe'"),
    (["fit", "{tmp}/good", "--epochs", "few"], r"epochs is 'few'"),
    (["fit", "{tmp}/good", "--device", "cuda:99"], r"device 'cuda:99' cannot be used"),
    (
        ["fit", "{tmp}/nothing", "--device", "gpu"],
        r"device is 'gpu', expected auto, cpu, cuda, cuda:N \(a number\), mps or xpu",
    ),
    (["predict", "{tmp}/nothing", "x.jpg", "--device", "gpu"], r"no such folder"),
    (["fit", "{tmp}/good", "--batch-size", "100000"], r"expected \"auto\" or a whole number from 1 to 65,536"),
    (["fit", "{tmp}/good", "--out", "{tmp}/column.csv"], r"column\.csv is a file; name a folder with --out$"),
    (
        ["fit", "{tmp}/good", "--out", "{tmp}/column.csv/a"],
        r"column\.csv is a file, so .*/a cannot lie in it; name a folder",
    ),
    (["fit", "{tmp}/good", "--out", os.devnull], r"^burnish: /dev/null is no folder; name a folder with --out$"),
    (["audit", "{tmp}/good", "--out", "{tmp}/column.csv"], r"column\.csv is a file; name a folder with --out$"),
    (["fit", "{tmp}/good", "--model", "random"], r"random is said with a network, as in random:resnet50"),
    (["models", "zzzz"], r"no model matches 'zzzz', nor is like it$"),
    (["train", "{tmp}/good"], r"No such command 'train'; here it is: burnish fit"),
    (["load", "{tmp}/x"], r"No such command 'load'; the verbs take a run by its folder"),
    (
        ["fit", "data={tmp}/good", "epochs=3"],
        r"data=.*/good is no option here, and no file; options are written as --epochs 3",
    ),
    (["predict", "model={tmp}/x", "y.jpg"], r"model=.* is no option here, and no file"),
    (["fit", "--data", "{tmp}/good"], r"No such option: --data; the data stands first, by itself"),
    (["predict", "{tmp}/x", "y", "--topk", "3"], r"No such option: --topk; here it is --top "),
    (["evaluate", "--model", "{tmp}/x"], r"--model; what is meant stands by itself: burnish evaluate RUN DATA"),
    (["export", "{tmp}/x", "--format", "onnx"], r"No such option: --format; here it is --to "),
    (["help", "fit"], r"No such command 'help'; say burnish fit --help"),
    (["fit", "{tmp}/column.csv"], r"label"),
    (["fit", "{tmp}/outside.csv"], r"\.\."),
    (["fit", "{tmp}/absolute.csv"], r"absolute"),
    (["fit", "{tmp}/split.csv"], r"tset.*train"),
    (["evaluate", "{tmp}/empty", "{tmp}/good"], r"holds no package.*; expected the folder of a run"),
    (
        ["evaluate", "{tmp}/good", "{tmp}/x"],
        r"good: holds no package.*but images, which are said after the run; expected",
    ),
    (["predict", "{tmp}/good/red/000.png", "{tmp}/x"], r"000\.png: holds no package.*which are said after the run"),
    (["predict", "{tmp}/nothing", "x.jpg"], r"no such folder"),
    (["report", "{tmp}"], r"has no result\.json"),
    (["models", "zzzzqqq"], r"no model matches"),
    (["fit"], r"Missing argument"),
    (["fti"], r"No such command"),
    (["predict", "{tmp}/x", "y", "--top", "0"], r"top"),
]


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    (root / "empty").mkdir()
    write_shapes(root / "one", images=4, classes=("a",))
    write_shapes(root / "few", images=4, classes=("a",))
    write_shapes(root / "few", images=1, classes=("b",))
    write_shapes(root / "good", images=4)
    (root / "column.csv").write_text("file,class\ngood/red/000.png,red\n")
    (root / "outside.csv").write_text("path,label\n../x.png,red\n")
    (root / "absolute.csv").write_text("path,label\n/etc/passwd,red\n")
    (root / "split.csv").write_text("path,label,split\ngood/red/000.png,red,tset\n")
    return root


@pytest.mark.parametrize(
    ("words", "sentence"), BAD_INPUT, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_sentence_and_exit_code_2(words, sentence, bad, tmp_path, capsys):
    out_at = ["--out", tmp_path / "run"] if words[0] == "fit" and len(words) > 1 and "--out" not in words else []
    code, out, err = burnish(*[word.format(tmp=bad) for word in words], *out_at, capsys=capsys)
    assert code == 2
    assert re.search(sentence, err, re.DOTALL), err
    assert err.startswith("burnish: ")
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in out + err
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback_of_this_call_alone(bad, capsys):
    before = dict(os.environ)
    _, _, err = burnish("fit", bad / "nothing", "--debug", capsys=capsys)
    assert "Traceback" in err
    assert dict(os.environ) == before
    _, _, err = burnish("fit", bad / "nothing", capsys=capsys)
    assert "Traceback" not in err


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_hostile_names_are_shown_and_do_nothing(tmp_path, capsys):
    """P10: as class and file names, in HTML, terminal, CSV and JSON."""
    root = tmp_path / "data"
    names = ("<script>alert(1)<", "new\nline", "smile 😀 space", "=cmd()")
    write_shapes(root, images=8, classes=names)
    os.rename(root / names[0] / "000.png", root / names[0] / "<img src=x onerror=alert(1)>.png")
    os.rename(root / names[3] / "000.png", root / names[3] / "\x1b[31mred.png")
    code, out, err = burnish("fit", root, "--method", "probe", *TINY, "--out", tmp_path / "run", capsys=capsys)
    assert code == 0, err
    assert "\x1b[31m" not in out
    page = Elements()
    page.feed((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert not [attrs for tag, attrs in page.tags if tag == "img" and attrs.get("src") == "x"]
    assert sum(tag == "script" for tag, _ in page.tags) <= 1
    facts = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert set(facts["classes"]) == set(names)
    code, out, err = burnish("predict", tmp_path / "run", root, "--csv", tmp_path / "a.csv", capsys=capsys)
    assert code == 0, err
    rows = list(csv.DictReader(open(tmp_path / "a.csv", encoding="utf-8", newline="")))
    assert len(rows) == 32
    assert {row["label"].removeprefix("'") for row in rows} <= set(names)
    assert not [cell for row in rows for cell in row.values() if cell.startswith("=")]
    code, out, _ = burnish("predict", tmp_path / "run", root, capsys=capsys)
    assert len(out.splitlines()) == 32
    assert "\x1b" not in out


def test_a_model_of_three_hundred_characters_is_one_sentence_on_the_command_line(shapes, tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["fit", str(shapes), "--model", "a" * 300, "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert leaving.value.code == 2 and "Traceback" not in error
    assert "a" * 40 in error.replace("\n", "") and len(error) < 600


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("could not create a primitive"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=["python", "onednn", "library", "system"],
)
def test_a_process_that_gets_no_more_memory_says_so_whatever_it_was_at(error, monkeypatch, capsys):
    def refused(**options):
        raise error

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit) as leaving:
        cli.main(["report", "run"])
    assert leaving.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("burnish: the system refused this process more memory (") and "ulimit -v" in told


def test_evaluate_says_why_none_of_the_images_could_be_read(run, tmp_path, capsys):
    for name in ("blue", "red"):
        (tmp_path / "new" / name).mkdir(parents=True)
        (tmp_path / "new" / name / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    code, _, err = burnish("evaluate", run, tmp_path / "new", capsys=capsys)
    assert code == 2 and re.search(r"none of its 2 images could be read \(first: .*1\.png: [^)]+\)", err)


def test_ctrl_c_leaves_with_130_and_a_package_that_predicts(shapes, tmp_path, capsys):
    process = fit_in_a_process(shapes, "--out", str(tmp_path / "run"))
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "history.jsonl").exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    code, out, _ = burnish("predict", tmp_path / "run", shapes / "red", capsys=capsys)
    assert code == 0
    assert len(out.splitlines()) == 20
    code, _, err = burnish("report", tmp_path / "run", capsys=capsys)
    assert code == 2
    assert "stopped early" in err


@pytest.mark.parametrize("coding", ["ascii", "cp1252"])
def test_an_output_that_knows_few_letters_ends_no_run(coding, shapes, tmp_path):
    command = [
        sys.executable,
        "-m",
        "burnish",
        "audit",
        str(shapes),
        "--model",
        "none",
        "--out",
        str(tmp_path / "audit"),
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": coding}, capture_output=True, timeout=120)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and done.stdout


def test_a_closed_pipe_is_no_traceback(run, shapes):
    command = f"{sys.executable} -m burnish predict {run} {shapes} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_a_name_of_a_model_is_never_broken_over_lines(capsys, monkeypatch):
    """It is there to be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = burnish("models", "vit_betwixt*", capsys=capsys)
    names = [row["name"] for row in json.loads(burnish("models", "vit_betwixt*", "--json", capsys=capsys)[1])]
    assert code == 0 and any(len(name) > 50 for name in names)
    assert [line.split()[0] for line in out.splitlines() if line.startswith("vit_")] == names
    assert all(len(line) <= 80 for line in out.splitlines())


ROOT = Path(__file__).parent.parent
FENCE = r"```python\n(.*?)```"
PAGES = [
    "README.md",
    *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")) if "```python" in page.read_text("utf-8")),
]
BEGUN = ["docs/models.md", "docs/serve.md"]  # open the run that the examples of other pages begin
WITHOUT_A_RUN = ["docs/data.md"]  # audits arrays, and writes nothing


DOCS = ["README.md", "CHANGELOG.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", DOCS)
def test_links_within_the_docs_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        name, _, place = target.partition("#")
        there = (ROOT / page).parent / name if name else ROOT / page
        assert there.exists(), f"{page} links to {target}"
        if place:
            titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert place in anchors, f"{page} links to {target}, which has {sorted(anchors)}"


@pytest.mark.parametrize("page", DOCS)
def test_options_that_the_docs_name_are_there(page):
    verbs = typer.main.get_command(cli.app).commands.values()
    known = {name for verb in verbs for option in verb.params for name in option.opts}
    known |= {"--debug", "--version", "--help"}
    text = (ROOT / page).read_text(encoding="utf-8")
    if page == "docs/coming_from.md":  # whose tables have calls of others in the first column
        text = re.sub(r"^\|.*\| (?=[^|]*\|$)", "| ", text, flags=re.MULTILINE)
    code = re.findall(r"`(burnish [^`]*|--[^`]*)`", text) + re.findall(r"^burnish [^#\n]*", text, re.MULTILINE)
    of_others = {"--lr", "--imgsz"}  # named as what it is called elsewhere
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(code)))
    assert named - of_others <= known


@pytest.mark.parametrize("page", PAGES)
def test_the_python_examples_of_the_docs_run(page, shapes, tmp_path, monkeypatch):
    code = re.findall(FENCE, (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert code
    (tmp_path / "photos").symlink_to(shapes)
    import burnish as package

    fit = package.fit
    monkeypatch.chdir(tmp_path)
    quick = {"model": "random:test_resnet", "method": "probe"}
    monkeypatch.setattr(package, "fit", lambda data, **given: fit(data, **{**given, **quick}), raising=False)
    first = next(shapes.glob("red/*.png"))
    if page in BEGUN:
        package.fit("photos/", budget="10m")
    for block in code:
        exec(block.replace("photos/cat/1.jpg", str(first)), {})
    assert (tmp_path / "runs" / "photos-1" / "result.json").exists() == (page not in WITHOUT_A_RUN)


def test_an_unsafe_model_file_is_refused_without_running_it_and_the_advice_can_be_copied(shapes, tmp_path, capsys):
    """P8: a pickle under a harmless name."""
    import pickle

    class Canary:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "canary"),))

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Canary()))
    model = f"resnet18={tmp_path / 'model.safetensors'}"
    code, _, err = burnish("fit", shapes, "--model", model, "--out", tmp_path / "run", capsys=capsys)
    assert code == 2
    assert "could run code" in err
    assert "torch.save(model.state_dict(), 'weights.pth')" in err
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "run").exists()


# ---- the exit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"), [(["methods"], 0), (["fit", "nowhere-at-all", "--budget", "5s"], 2), (["fti"], 2)]
)
def test_the_program_leaves_with_the_code_of_its_verb(words, code, tmp_path):
    done = subprocess.run([sys.executable, "-m", "burnish", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout if code == 0 else done.stderr.startswith("burnish: ")


def test_what_is_to_be_done_at_the_exit_is_done_and_all_output_arrives(tmp_path):
    code = (
        "import atexit, sys, tempfile, burnish.__main__ as program, burnish.cli as cli\n"
        "def main():\n"
        f"    atexit.register(open, {str(tmp_path / 'done')!r}, 'w')\n"
        "    sys.stdout.write('x' * 100_000)\n"
        "    sys.exit(3)\n"
        "cli.main = main\n"
        "program.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, len(done.stdout)) == (3, 100_000)
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("name, turns", [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active"), (None, "3000")])
def test_threads_of_the_program_wait_briefly_unless_the_user_says_how(name, turns):
    environment = {} if name is None else {name: turns}
    imports.wait_briefly(environment)
    assert environment == {name or "GOMP_SPINCOUNT": turns}


def test_how_threads_wait_is_said_before_torch_is_loaded():
    code = (
        "import os, sys, burnish.__main__ as program\n"
        "assert 'torch' not in sys.modules\n"
        "import burnish.cli as cli\n"
        "cli.main = lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)\n"
        "program.run()"
    )
    plain = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=plain, check=True)
    assert done.stdout == "3000 False\n"


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "nowhere"], ["compare", "nowhere"], ["fit", "demo", "--epochs", "0"], ["predict", "nowhere", "a.jpg"],
        ["evaluate", "nowhere", "demo"], ["explain", "nowhere", "a.jpg"], ["export", "nowhere", "--out", "a.keras"],
    ],
)  # fmt: skip
def test_mistakes_in_data_and_settings_are_told_before_torch_is_loaded(words, tmp_path):
    code = f"import sys, burnish.cli as cli\ntry: cli.main({words!r})\nexcept SystemExit as left: print(left.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, "Traceback" in done.stderr) == ("2 False\n", False)
    assert not list(tmp_path.glob("runs/*"))


def test_an_error_that_nobody_caught_is_shown_and_leaves_with_1():
    code = "import burnish.__main__ as program, burnish.cli as cli\ncli.main = lambda: 1 / 0\nprogram.run()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("indent", [0, 5])
def test_no_line_of_a_paragraph_begins_with_a_percent_sign(capsys, indent):
    for length in range(40, 75):
        text = f"{'x' * length} 97.8 % of 1,562 test images right (95 % interval 96.9 % to 98.4 %)."
        _paragraph(text, indent=indent)
        lines = capsys.readouterr().out.splitlines()
        assert " ".join(" ".join(lines).split()) == text
        assert all(len(line) <= 80 and line.strip()[0] != "%" for line in lines)
