"""From captions to questions: a scripted server, resume, privacy, filters, review, and the folder that comes out."""

import json
import resource
import stat
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ift_generate_recipe
import pytest

from ift_components.config import find_config, load_config
from ift_components.data.build import BuildOptions, prepare
from ift_components.data.builders import image_text
from ift_components.data.mcq import QuestionOptions
from ift_components.data.prepared import load_questions, load_reports, read_manifest
from ift_components.errors import ConfigError, DataError, UserError
from ift_components.generation.build import GenerateSettings, generate
from ift_components.generation.filters import (
    Candidate,
    apply_filters,
    content_words,
    duplicates,
    given_away,
    history,
    measurements,
    names,
    pattern,
    talks_of_text,
    unanswered,
    unsupported,
    wrong_split,
    yes_no_balance,
)
from ift_components.generation.replies import Pair
from ift_components.generation.templates import TEMPLATES, find_template

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))
from trees import save_csv, save_picture

CAPTION = "A dark mass lies in the liver. Figure {n}."
CONTEXT = "It was seen in the arterial phase."
REPLY = "Here:\n\nQ: Where is the mass?\nA: In the liver\n\nQ: Is it dark?\nA: Yes\n\nQ: Is it large?\nA: No\nQ: Is it?\nA: Yes"


class Model:
    """An OpenAI-compatible server whose replies a function scripts; it keeps what it was asked."""

    def __init__(self):
        self.requests = []
        self.script = lambda number, request: (200, REPLY)
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(handler):  # noqa: N805
                request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                with lock:
                    self.requests.append(request)
                    status, text = self.script(len(self.requests), request)
                body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                handler.send_response(status)
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    @property
    def captions(self):
        return sorted(request["messages"][0]["content"].split("Figure ")[1].split(".")[0] for request in self.requests)


@pytest.fixture
def model():
    made = Model()
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """A prepared folder of six captions: four to train, one each to validate and test."""
    root = tmp_path_factory.mktemp("captions")
    names = [save_picture(root / f"{n}.png", n).name for n in range(6)]
    splits = ["train"] * 4 + ["val", "test"]
    rows = [[name, CAPTION.format(n=n), splits[n], CONTEXT] for n, name in enumerate(names)]
    save_csv(root / "t.csv", ["image", "text", "set", "more"], rows)
    source = image_text(root, "t.csv", split_column="set", context_column="more")
    prepare(source, root / "prepared", QuestionOptions(), BuildOptions(workers=1))
    return root / "prepared"


def config(captions, out, *overrides):
    paths = [f"data={captions}", f"output_dir={out}", f"replies={out.parent / 'replies.jsonl'}"]
    return load_config("generate.yaml", [*paths, "server.retries=0", *overrides], GenerateSettings)


def run(captions, out, *overrides):
    cfg = config(captions, out, *overrides)
    return generate(cfg.data, cfg.output_dir, cfg)


def test_questions_of_every_split(captions, model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = [f"data={captions}", f"output_dir={out}", f"replies={tmp_path / 'r'}", f"server.base_url={model.url}"]
    arguments += ["server.model=m", "server.seed=5", "server.temperature=0.5", "filters.yes_no_balance.max_ratio=2"]
    monkeypatch.setattr(sys, "argv", ["ift_generate_recipe", "--config", "generate.yaml", *arguments])
    ift_generate_recipe.main()
    printed = capsys.readouterr().out
    assert "6 replies about 6 captions, 6 of them whole" in printed
    assert "24 questions: train 16, val 4, test 4" in printed
    rows = load_questions(out, "test")
    first, second, third, _ = rows
    assert (first["id"], first["image_id"], first["attribute"]) == ("5.png#0", "5.png", "several_pairs")
    assert (first["kind"], first["question"], first["answer_text"]) == ("open", "Where is the mass?", "In the liver")
    assert (second["kind"], second["answer_text"], third["answer_text"]) == ("closed", "yes", "no")
    assert (first["options"], first["answer"]) == (None, None)
    assert first["image"].tobytes() == load_reports(captions, "test")[0]["image"].tobytes()
    manifest = read_manifest(out)
    generation = manifest["generation"]
    assert (manifest["format"], manifest["private"]) == (2, False)
    assert (generation["server"]["model"], generation["server"]["seed"], generation["pairs"]) == ("m", 5, 24)
    assert manifest["checks"]["questions"]["train"]["several_pairs"]["count"] == 16
    assert {request["model"] for request in model.requests} == {"m"}
    assert len({request["seed"] for request in model.requests}) == 6
    assert all(CONTEXT in request["messages"][0]["content"] for request in model.requests)
    assert "several_pairs" in (out / "preview.html").read_text(encoding="utf-8")


def test_a_server_that_dies_is_asked_only_for_what_is_missing(captions, model, tmp_path, capsys):
    server = [f"server.base_url={model.url}", "server.model=m", "server.concurrency=1"]
    model.script = lambda number, request: (200, REPLY) if number <= 2 else (503, "")
    with pytest.raises(UserError, match=r"gave no reply to 4 of 6 captions .*run the same command again"):
        run(captions, tmp_path / "out", *server)
    assert not (tmp_path / "out").exists()
    with (tmp_path / "replies.jsonl").open("a") as file:
        file.write('{"key": "cut o')  # as a process that was killed leaves it
    model.script = lambda number, request: (200, REPLY)
    model.requests.clear()
    manifest = run(captions, tmp_path / "out", *server)
    assert model.captions == ["2", "3", "4", "5"]
    assert manifest["generation"]["replies"] == 6
    assert len((tmp_path / "replies.jsonl").read_text().splitlines()) == 6
    run(captions, tmp_path / "out", *server)
    assert "nothing to do" in capsys.readouterr().out
    run(captions, tmp_path / "other", *server, "filters.yes_no_balance=null")
    assert len(model.requests) == 4
    run(captions, tmp_path / "third", *server, "server.seed=1")
    assert len(model.requests) == 10


def test_replies_that_are_no_answer_and_refusals_are_counted(captions, model, tmp_path):
    replies = {
        1: (200, "I'm sorry, I cannot do that."),
        2: (200, "The liver."),
        3: (400, ""),
        4: (200, f"{REPLY}\nQ: Why?"),
    }
    model.script = lambda number, request: replies.get(number, (200, REPLY))
    server = [f"server.base_url={model.url}", "server.model=m", "server.concurrency=1"]
    # The server must have answered once before a request alone can be at fault.
    outcome = run(captions, tmp_path / "out", *server, "filters.yes_no_balance=null")["generation"]
    assert outcome["refused"] == {
        "the model declined": 1, "no question in it": 1, "the server refused": 1, "question without an answer": 1,
    }  # fmt: skip
    assert (outcome["replies"], outcome["replies_complete"], outcome["pairs"]) == (6, 2, 12)


def test_private_captions_stay_on_this_machine(captions, model, tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    for path in captions.rglob("*"):
        if path.is_file():
            target = private / path.relative_to(captions)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    manifest = json.loads((private / "manifest.json").read_text())
    (private / "manifest.json").write_text(json.dumps(manifest | {"private": True}))
    with pytest.raises(ConfigError, match=r"http://192.0.2.1/v1 is not on this machine, but the captions are private"):
        run(private, tmp_path / "out", "server.model=m", "server.base_url=http://192.0.2.1/v1")
    remote = ["server.base_url=http://192.0.2.1:1/v1", "server.timeout=0.2", "server.allow_remote=true"]
    with pytest.raises(UserError, match=r"http://192.0.2.1:1/v1 gave no"):
        run(private, tmp_path / "out", "server.model=m", *remote)
    run(private, tmp_path / "out", "server.model=m", f"server.base_url={model.url}")
    written = [tmp_path / "replies.jsonl", *(tmp_path / "out").rglob("*.*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}
    assert not (tmp_path / "out" / "review.html").exists()
    assert (
        "liver"
        not in (tmp_path / "out" / "preview.html").read_text() + (tmp_path / "out" / "manifest.json").read_text()
    )


def test_imported_replies_and_their_split(captions, tmp_path):
    rows = [{"image": f"{n}.png", "text": REPLY, "part": part} for n, part in enumerate(["Train", "Test", "train"])]
    rows.append({"image": "99.png", "text": REPLY, "part": "train"})
    (tmp_path / "r.json").write_text(json.dumps(rows))
    fields = ["imported.image_field=image", "imported.reply_field=text", "imported.split_field=part"]
    manifest = run(captions, tmp_path / "out", f"imported.path={tmp_path / 'r.json'}", *fields)
    outcome = manifest["generation"]
    assert (outcome["replies"], outcome["replies_about_other_images"]) == (3, 1)
    assert outcome["filtered"]["wrong_split"] == {"the reply comes from another split than its image": 4}
    assert outcome["filtered"]["yes_no_balance"] == {"too many answers of yes": 2}
    assert manifest["counts"]["questions"] == {"train": 6, "val": 0, "test": 0}
    assert Counter(load_questions(tmp_path / "out", "train")["answer_text"]) == {"In the liver": 2, "yes": 2, "no": 2}


def test_a_person_drops_pairs(captions, model, tmp_path):
    server = [f"server.base_url={model.url}", "server.model=m", "filters.yes_no_balance=null", "review.pairs=5"]
    run(captions, tmp_path / "out", *server)
    page = (tmp_path / "out" / "review.html").read_text(encoding="utf-8")
    keys = [part.split('"')[0] for part in page.split('data-key="')[1:]]
    assert len(set(keys)) == 5
    assert page.count("data:image/jpeg;base64,") == 5
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from elsewhere
    decisions = {keys[0]: "drop", keys[1]: "drop", keys[2]: "keep", "0" * 16: "drop"}
    (tmp_path / "decisions.json").write_text(json.dumps({"fingerprint": "x", "decisions": decisions}))
    reviewed = run(captions, tmp_path / "two", *server, f"review.decisions={tmp_path / 'decisions.json'}")
    assert reviewed["generation"]["reviewed"] == {"keep": 1, "drop": 2, "about_other_pairs": 1}
    assert reviewed["generation"]["kept"] == 22
    (tmp_path / "decisions.json").write_text('{"decisions": {"a": "maybe"}}')
    with pytest.raises(DataError, match="is no file of the review page"):
        run(captions, tmp_path / "three", *server, f"review.decisions={tmp_path / 'decisions.json'}")


@pytest.mark.parametrize(
    "case",
    [
        ("one_question", "What lies in the liver?", ("open", "What lies in the liver?", CAPTION.format(n=5), None)),
        ("with_options", "Q: Where?\nA) liver\nB) lung\nAnswer: A", ("choice", "Where?", "liver", ["liver", "lung"])),
        ("detailed_description", "A mass.", ("open", "Describe the image in detail.", "A mass.", None)),
        (
            "complex_reasoning",
            "Q: Why?\nA: A dark mass in the liver.",
            ("open", "Why?", "A dark mass in the liver.", None),
        ),
    ],
)
def test_templates(captions, model, tmp_path, case):
    template, reply, row = case
    model.script = lambda number, request: (200, reply)
    server = [f"server.base_url={model.url}", "server.model=m", f"template={template}", "splits=[test]"]
    run(captions, tmp_path / "out", *server, "filters.given_away=null")
    (got,) = load_questions(tmp_path / "out", "test")
    assert (got["kind"], got["question"], got["answer_text"], got["options"]) == row
    assert got["answer"] == (0 if row[3] else None)


def test_wrong_values(captions, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "bad.jsonl").write_text("no JSON\n{}\n")
    for overrides, message in [
        ([], "give server.model"),
        (["server.model=m", "template=poem"], "template is 'poem', expected one of: one_question"),
        (["server.model=m", "prompt=hello"], "no field {caption}"),
        (["server.model=m", "prompt=hello {caption} {name}"], "unknown field 'name'"),
        (["server.model=m", "splits=[training]"], "splits is"),
        (["server.model=m", "count=0"], "expected at least 1"),
        (["server.model=m", "filters.unsupported.min_share=2"], "min_share is 2"),
        (["server.model=m", f"replies={tmp_path / 'bad.jsonl'}"], "line 1 holds no reply"),
        ([f"imported.path={tmp_path / 'nowhere.json'}"], "cannot be read as JSON"),
        ([f"review.decisions={tmp_path / 'nowhere.json'}"], "cannot be read as JSON"),
    ]:
        with pytest.raises(UserError, match=message):
            run(captions, out, *overrides)
    (tmp_path / "r.json").write_text(json.dumps([{"image_id": "0.png", "reply": "Nothing."}]))
    with pytest.raises(DataError, match=r"no pair is left of 0 \(no question in it: 1\)"):
        run(captions, out, f"imported.path={tmp_path / 'r.json'}")
    (tmp_path / "r.json").write_text(json.dumps([{"image_id": "x.png", "reply": "Nothing."}]))
    with pytest.raises(DataError, match=r"is imported.image_field right\?"):
        run(captions, out, f"imported.path={tmp_path / 'r.json'}")
    assert not out.exists()


def candidate(question="What is seen?", answer="A mass", options=None, **rest):
    fields = {"image_id": "i", "split": "train", "facts": "CT Axial", "template": "t"}
    return Candidate(
        pair=Pair(question, answer, options), caption="A calcified mass in the left lung.", **(fields | rest)
    )


@pytest.mark.parametrize(
    ("check", "dropped", "passed"),
    [
        (given_away, [("Is the mass a calcified mass?", "Calcified mass"), ("Where in the left lung?", "The left lung")],
         [("Is it calcified or soft?", "Calcified"), ("Is the mass calcified?", "Yes"),
          ("What is left of it?", "Calcification"), ("Which plane?", "Axial")]),
        (unsupported, [("What?", "A fracture"), ("What?", "Yes, a fracture of the rib")],
         [("What?", "Calcified masses"), ("What?", "No"), ("Plane?", "axial (from the side)"),
          ("What?", "Masses in the lung")]),
        (talks_of_text, [("What does the caption say?", "x"), ("x?", "As mentioned, a mass"), ("In the text?", "y")],
         [("What is the texture?", "smooth"), ("Is it dark according to the image?", "x"), ("Which contextual?", "z")]),
        (unanswered, [("x?", "Not available"), ("x?", "It is unknown."), ("x?", "There isn't enough information."),
                      ("x?", "Not specified in it")],
         [("x?", "None"), ("x?", "No")]),
        (measurements, [("How large is it?", "x"), ("x?", "3.6cm"), ("x?", "5 x 4 cm"), ("x?", "40 %"), ("x?", "20 HU")],
         [("Which vertebra?", "L4"), ("T1 or T2?", "T2"), ("How many masses?", "2")]),
        (history, [("What is the patient's age?", "x"), ("x?", "A 65-year-old"), ("Any history of it?", "No")],
         [("Is it an old fracture?", "Yes"), ("Updated?", "x")]),
        (names, [("Who?", "Dr. Smith"), ("x?", "the radiologist")], [("dry lung?", "drain")]),
        (lambda: pattern("drawing", "d"), [("Is it a Drawing?", "x")], [("x?", "y")]),
    ],
)  # fmt: skip
def test_filters_of_single_pairs(check, dropped, passed):
    assert all(check()([candidate(*pair) for pair in dropped]))
    assert not any(check()([candidate(*pair) for pair in passed]))


def test_filters_of_many_pairs():
    assert duplicates()([candidate("Is it?"), candidate("is it"), candidate("Is it?", image_id="j")]) == [
        "", "the question occurs a second time", "",
    ]  # fmt: skip
    leaks = [candidate(), candidate(elsewhere=("test",)), candidate(split="test", elsewhere=("train",))]
    leaks.append(candidate(stated_split="val"))
    assert list(map(bool, wrong_split()(leaks))) == [False, True, False, True]
    closed = [candidate(f"{n}?", "yes" if n < 7 else "No.", split="test" if n == 6 else "train") for n in range(9)]
    out = yes_no_balance()(closed)
    assert [bool(reason) for reason in out].count(True) == 5  # four of six in train, and test's only answer
    assert out[6:] == ["too many answers of yes", "", ""]
    assert out == yes_no_balance()(closed) != yes_no_balance(seed=1)(closed)
    assert sum(map(bool, yes_no_balance(max_ratio=2)(closed))) == 3
    left, counts = apply_filters(
        {"a": duplicates(), "b": given_away()}, [candidate("A mass?", "a mass"), candidate("a mass")]
    )
    assert (left, counts) == (
        [], {"a": Counter({"the question occurs a second time": 1}), "b": Counter({"the question gives the answer away": 1})},
    )  # fmt: skip
    assert content_words("The masses are shown in an image") == {"mass"}


def test_prompts_have_what_they_ask_for():
    for name, template in TEMPLATES.items():
        prompt = template.render("CAPTION {x}", "", 3)
        assert "CAPTION {x}" in prompt
        assert name in find_config("generate.yaml").read_text(encoding="utf-8")
    assert find_template("several_pairs", "Ask: {caption}").render("c", "", 1) == "Ask: c"
    assert "(none)" in TEMPLATES["complex_reasoning"].render("c", "", 1)


def test_a_full_disk_is_one_line_and_no_reply_is_lost(captions, model, tmp_path):
    server = ("server.model=m", f"server.base_url={model.url}", "server.concurrency=1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))  # bytes a file may have: as many replies as fit, and a half
    try:
        with pytest.raises(
            UserError, match=r"replies: .*replies.jsonl cannot be written: File too large; the replies until"
        ):
            run(captions, tmp_path / "out", *server)
        first = len(model.requests)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # room for the replies, none for the images
        with pytest.raises(DataError, match=r"output_dir: .*out cannot be written: .*; the replies are kept"):
            run(captions, tmp_path / "out", *server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()
    assert 0 < first < 6
    assert len(set(model.captions[:])) == 6
    asked = len(model.requests)
    assert asked <= 6 + first  # only what had not been written was asked again
    run(captions, tmp_path / "out", *server)
    assert len(model.requests) == asked
    assert load_questions(tmp_path / "out", "train")
