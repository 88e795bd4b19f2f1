"""The image: its Dockerfile judged by hadolint and by what it must promise, and built here in a folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.deno import REPOSITORY
from tests.image import build, context, dockerfile
from tests.image.build import BuildError, Image
from tests.image.place import place

TEXT = (REPOSITORY / "Dockerfile").read_text()
FILE = dockerfile.read(TEXT)
SHA = "0123456789abcdef0123456789abcdef01234567"
HADOLINT = (str(Path(sys.executable).parent / "hadolint"), "--failure-threshold", "style", "--format", "json",
            "--require-label", "org.opencontainers.image.revision:text", "-")  # fmt: skip


def hadolint(text: str) -> list[str]:
    """Return the codes of the rules that a Dockerfile breaks, those of the shell in its RUN lines among them."""
    done = subprocess.run(HADOLINT, input=text, capture_output=True, text=True, timeout=60, check=False)
    return sorted({found["code"] for found in json.loads(done.stdout)})


def test_hadolint_has_nothing_to_say() -> None:
    assert hadolint(TEXT) == []


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("DL1000", "WORKDIR /build", "WORKDIRS /build"),
        ("DL3000", "WORKDIR /build", "WORKDIR build"),
        ("DL3002", "USER 10001:10001", "USER root"),
        ("DL3004", "RUN /opt/tools", "RUN sudo /opt/tools"),
        ("DL3006", "FROM ${BASE} AS build", "FROM python AS build"),
        ("DL3007", "FROM ${BASE} AS build", "FROM python:latest AS build"),
        ("DL3020", "COPY worker worker", "ADD worker worker"),
        ("DL3022", "COPY --from=build /opt/models", "COPY --from=built /opt/models"),
        ("DL3025", 'CMD ["worker"]', "CMD worker"),
        ("DL3042", "PIP_NO_CACHE_DIR=1 ", ""),
        ("DL3049", "org.opencontainers.image.revision=", "org.opencontainers.image.revise="),
        ("DL4000", "STOPSIGNAL SIGTERM", "MAINTAINER somebody"),
        ("DL4003", 'CMD ["worker"]', 'CMD ["worker"]\nCMD ["worker"]'),
        ("SC2086", '-r "requirements/${extra}.txt"', "-r requirements/${extra}.txt"),
    ],
)  # fmt: skip
def test_hadolint_would_find_what_breaks_a_rule(rule: str, before: str, after: str) -> None:
    assert before in TEXT

    assert rule in hadolint(TEXT.replace(before, after))


def promises(file: dockerfile.Dockerfile) -> list[str]:
    """Return what a Dockerfile does not keep of what ours must."""
    final = file.final.instructions
    runs = [one.value for stage in file.stages for one in stage.instructions if one.name == "RUN"]
    installs = [part for run in runs for part in run.split("&&") if re.search(r"\bpip\b.* install ", part)]
    base = dockerfile.replace(file.final.base, file.arguments)
    words = {one.name: one.words() for one in final}
    kept = {
        "a slim Python of one exact version": re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+(@sha256:\w{64})?", base),
        "both stages have the same base": len({stage.base for stage in file.stages}) == 1,
        "a user that is a number and not root": re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", words["USER"][0]),
        "sluice is the entry point": words["ENTRYPOINT"] == ["sluice"],
        "worker is what it does": words["CMD"] == ["worker"],
        "SIGTERM drains it": words["STOPSIGNAL"] == ["SIGTERM"],
        "nothing is run in the final stage": "RUN" not in words,
        "its files come from the build only": all(one.flags.get("from") for one in final if one.name == "COPY"),
        "hashes, or nothing from outside": installs
        and all("--require-hashes" in one or "--no-index --no-deps" in one for one in installs),
        "wheels only": all("--only-binary :all:" in one or "--no-index" in one for one in installs),
        "no key is an argument": not re.search(r"(?i)^ARG .*(key|secret|password|url)", "\n".join(
            f"ARG {one.value}" for stage in file.stages for one in stage.instructions if one.name == "ARG"),
            re.MULTILINE),
    }  # fmt: skip
    return [promise for promise, is_kept in kept.items() if not is_kept]


def test_the_dockerfile_keeps_its_promises() -> None:
    assert promises(FILE) == []


@pytest.mark.parametrize(
    ("promise", "before", "after"),
    [
        ("a slim Python of one exact version", "python:3.13.16-slim-trixie", "python:3.13-slim"),
        ("both stages have the same base", "FROM ${BASE}\n", "FROM python:3.12.1-slim-trixie\n"),
        ("a user that is a number and not root", "USER 10001:10001", "USER sluice"),
        ("a user that is a number and not root", "USER 10001:10001", "USER 0:0"),
        ("sluice is the entry point", 'ENTRYPOINT ["sluice"]', 'ENTRYPOINT ["sh", "-c", "sluice"]'),
        ("worker is what it does", 'CMD ["worker"]', 'CMD ["sluice", "worker"]'),
        ("SIGTERM drains it", "STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL"),
        ("nothing is run in the final stage", "USER 10001", "RUN pip install --require-hashes x\nUSER 10001"),
        ("its files come from the build only", "USER 10001", "COPY worker /opt/x\nUSER 10001"),
        ("hashes, or nothing from outside", "--require-hashes -r requirements/base.txt", "-r requirements/base.txt"),
        ("hashes, or nothing from outside", "--no-index --no-deps dist", "dist"),
        ("wheels only", "--only-binary :all: --no-deps", "--no-deps"),
        ("no key is an argument", "ARG SLUICE_EXTRAS=local", "ARG OPENAI_API_KEY"),
    ],
)
def test_a_dockerfile_that_breaks_a_promise_is_found_out(promise: str, before: str, after: str) -> None:
    assert before in TEXT

    assert promise in promises(dockerfile.read(TEXT.replace(before, after)))


def test_an_instruction_that_the_builder_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2: VOLUME is not an instruction"):
        dockerfile.read("FROM x\nVOLUME /data\n")


@pytest.mark.parametrize(
    "path",
    [".env", "scripts/demo", "local/stack.py", "tests/conftest.py", "requirements/dev.txt", "supabase/config.toml",
     "supabase/functions/search/index.ts", ".git/config", ".venv/bin/python", ".sluice/stack/keys.json", "render.yaml",
     "worker/__pycache__/model.cpython-313.pyc", "worker/.env", "worker/notes.md", "supabase/.temp/project-ref"],
)  # fmt: skip
def test_what_no_image_needs_is_not_even_sent_to_its_build(path: str) -> None:
    rules = context.Rules((REPOSITORY / ".dockerignore").read_text())

    assert not rules.keep(path)


def test_the_build_gets_the_package_its_migrations_its_locks_and_nothing_else() -> None:
    found = context.sent(REPOSITORY)

    package = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "worker").rglob("*.*")
               if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    migrations = {f"supabase/migrations/{path.name}" for path in (REPOSITORY / "supabase/migrations").glob("*")}
    names = ("base", "build", "llama-cloud", "llama-parse", "local", "weights")
    assert set(found) == package | migrations | {"README.md", "pyproject.toml"} | {
        f"requirements/{name}.txt" for name in names
    }


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("a", {"b/a", "b/c.txt"}), ("b", {"a"}), ("*", set()), ("b/*.txt", {"a", "b/a"}), ("**/a", {"b/c.txt"}),
        ("*\n!b/c.txt", {"b/c.txt"}), ("*\n!b\nb/a", {"b/c.txt"}), ("*\n!**/a", {"a", "b/a"}), ("?", set()),
        ("# a", {"a", "b/a", "b/c.txt"}), ("b\n!b/a", {"a", "b/a"}),
    ],
)  # fmt: skip
def test_the_last_line_that_names_a_file_or_its_folder_decides(tmp_path: Path, line: str, kept: set[str]) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a", "b/a", "b/c.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_text(line)

    assert set(context.sent(tmp_path)) - {".dockerignore"} == kept


SMALL = "ARG BASE=python\nFROM ${BASE} AS build\nWORKDIR /build\n%s\nFROM ${BASE}\nCOPY --from=build /build /opt/x\n"
REST = 'USER 10001:10001\nENTRYPOINT ["python"]\nCMD ["-V"]\n'


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / ".dockerignore").write_text("*\n!there.txt\n")
    for name in ("there.txt", "ignored.txt"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_what_a_stage_makes_is_what_the_next_one_copies(small: Path) -> None:
    steps = "COPY there.txt here/\nARG WORD=no\nENV TWICE=${WORD}${WORD}\nRUN printf %s $TWICE > /build/said"

    with place() as folder:
        image = build.build(SMALL % steps + REST, small, folder, {"WORD": "yes"})
        files = {path.relative_to(image.root).as_posix(): path.read_text() for path in image.root.rglob("*.*")}

        assert (image.root / "opt/x/said").read_text() == "yesyes"
        assert files == {"opt/x/here/there.txt": "there.txt"}
        assert "TWICE" not in image.environment


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ("COPY ignored.txt .", r"line 4, COPY ignored.txt .: ignored.txt is not in the build context"),
        ("COPY missing.txt .", r"missing.txt is not in the build context"),
        ("RUN echo it broke && false", r"line 4, RUN echo it broke && false: exit status 1\nit broke"),
        ("RUN touch /etc/passwd", r"it names /etc, which would be this machine's"),
        ("COPY --from=nowhere /build /opt/y", r"No such file or directory"),
    ],
)
def test_a_step_that_cannot_work_ends_the_build_and_names_its_line(small: Path, step: str, complaint: str) -> None:
    with place() as folder, pytest.raises(BuildError, match=complaint):
        build.build(SMALL % step + REST, small, folder)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image with the base packages: twenty seconds, with pip's cache; the extras are `scripts/prove image`."""
    with place() as folder:
        yield build.build(TEXT, REPOSITORY, folder, {"SLUICE_EXTRAS": "", "SLUICE_GIT_SHA": SHA})


@pytest.fixture
def temporary(image: Image) -> Iterator[Path]:
    """What is mounted at TMPDIR: the only folder that the image's user can write to."""
    with place() as folder:
        yield folder


pytestmark = pytest.mark.timeout(300)


def test_the_image_says_its_version(image: Image, temporary: Path) -> None:
    done = image.run("--version", temporary=temporary)

    assert (done.returncode, done.stdout) == (0, "sluice, version 0.1.0\n"), done.stderr


def test_a_worker_with_an_empty_environment_names_what_it_wants(image: Image, temporary: Path) -> None:
    done = image.run(temporary=temporary)

    assert done.returncode == 2
    for name in ("DATABASE_URL", "SUPABASE_URL", "SUPABASE_SECRET_KEY"):
        assert f"{name}: is not set" in done.stderr


def test_a_worker_whose_database_is_away_says_so_and_writes_nothing_into_the_image(
    image: Image, temporary: Path
) -> None:
    before = sorted(image.root.rglob("*"))

    done = image.run(
        temporary=temporary,
        environment={
            "DATABASE_URL": "postgresql://ingest_worker:x@127.0.0.1:1/postgres", "SUPABASE_URL": "http://127.0.0.1:1",
            "SUPABASE_SECRET_KEY": "sb_secret_x",
        },
    )  # fmt: skip

    assert done.returncode == 1
    assert "The database at 127.0.0.1 did not answer." in done.stderr
    assert sorted(image.root.rglob("*")) == before
    assert list(temporary.iterdir()) == []


def python(image: Image, temporary: Path, code: str, **environment: str) -> object:
    done = image.run("-c", code, temporary=temporary, environment=environment, entrypoint=["python"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_images_user_owns_nothing_and_can_write_nowhere_but_in_its_temporary_folder(
    image: Image, temporary: Path
) -> None:
    code = """if True:
        import json, os, sys, tempfile
        def writable(folder):
            return [path for path, _, files in os.walk(folder) for path in
                    [path, *(os.path.join(path, name) for name in files)] if os.access(path, os.W_OK)]
        temporary = tempfile.gettempdir()
        print(json.dumps([os.getuid(), writable(os.getcwd()), temporary, os.access(temporary, os.W_OK)]))
    """
    uid, writable, folder, usable = python(image, temporary, code)

    assert uid == (10001 if os.geteuid() == 0 else os.geteuid())
    assert writable == []
    assert (folder, usable) == (str(temporary), True)


def test_the_image_holds_the_package_its_locked_packages_and_no_tool_that_made_it(image: Image) -> None:
    (packages,) = (image.root / "opt/sluice/lib").glob("python3*/site-packages")
    installed = {re.split(r"-[\d.]+", path.name)[0].lower().replace("_", "-") for path in packages.glob("*.dist-info")}
    locked = {line.split("==")[0] for line in (REPOSITORY / "requirements/base.txt").read_text().splitlines()
              if "==" in line}  # fmt: skip

    assert installed - locked == {"sluice"}
    assert installed & {"pip", "setuptools", "hatchling", "pytest", "onnx"} == set()
    top = {path.name for path in image.root.iterdir()} | {path.name for path in (image.root / "opt").iterdir()}
    assert top == {"opt", "sluice", "models"}
    assert not any((packages / name).exists() for name in ("tests", "local"))
    source = {path.relative_to(REPOSITORY / "worker").as_posix() for path in (REPOSITORY / "worker").rglob("*.*")
              if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    carried = {path.relative_to(packages / "worker").as_posix() for path in (packages / "worker").rglob("*.*")
               if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    assert {path for path in carried if not path.startswith("migrations/")} == source


def test_the_image_carries_the_names_of_its_migrations(image: Image, temporary: Path) -> None:
    code = "import json; from worker.operate.doctor.migrations import files; print(json.dumps(list(files())))"

    assert python(image, temporary, code) == sorted(
        path.stem.partition("_")[0] for path in (REPOSITORY / "supabase" / "migrations").glob("*.sql")
    )


def test_the_images_settings_are_those_that_the_worker_reads(image: Image, temporary: Path) -> None:
    code = """if True:
        import json
        from worker.settings import Settings
        settings = Settings()
        print(json.dumps([str(settings.model_dir), settings.temp_dir]))
    """
    required = {"DATABASE_URL": "postgresql://x", "SUPABASE_URL": "http://x", "SUPABASE_SECRET_KEY": "x"}

    assert python(image, temporary, code, **required) == [f"{image.root}/opt/models", None]
    assert image.environment["SLUICE_GIT_SHA"] == image.labels["org.opencontainers.image.revision"] == SHA


def test_a_parser_child_of_the_image_is_confined_and_sees_no_secret(image: Image, temporary: Path) -> None:
    code = "import json; from worker.pipeline.parse.sandbox import probe; print(json.dumps(probe()))"

    found = python(image, temporary, code, SUPABASE_SECRET_KEY="sb_secret_x", OPENAI_API_KEY="sk-x")

    assert isinstance(found, dict)
    assert found["mode"] in ("namespace", "seccomp")
    assert found["reads_parent"] is False
    assert set(found["environment"]) & {"SUPABASE_SECRET_KEY", "OPENAI_API_KEY", "DATABASE_URL"} == set()
