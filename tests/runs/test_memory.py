"""Memory: flat however many pictures there are, and less of it where it runs out."""

import json
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lrp_cli.errors import ConfigError, EngineError, is_out_of_memory
from lrp_cli.explainer import Explainer
from lrp_cli.runs import memory
from lrp_cli.runs.prefetch import threads_at_work
from lrp_cli.runs.recording import Recorder

Make = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pictures(tmp_path: Path, make_picture: Make) -> Path:
    for seed in range(9):
        make_picture(tmp_path / f"in/{seed}.png", seed)
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a matmul primitive"), False),
        (RuntimeError("can't start new thread"), False),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_has_run_out(error: Exception, is_so: bool) -> None:
    assert is_out_of_memory(error) == is_so


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_that_is_said_once(
    lrp, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    forward = Explainer.forward
    sizes = []

    def limited(self: Explainer, x: torch.Tensor, **options: object) -> object:
        sizes.append(len(x))
        if len(x) > 2:
            raise error
        return forward(self, x, **options)

    monkeypatch.setattr(Explainer, "forward", limited)
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json", "-b", "8", "--threads", "1")
    assert result.code == 0
    assert [Path(record["image"]).name for record in result.records] == [f"{number}.png" for number in range(9)]
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2
    assert result.err.count("out of memory") == 1


def test_a_picture_that_does_not_even_fit_alone_fails_alone(
    lrp, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Explainer.forward

    def limited(self: Explainer, x: torch.Tensor, **options: object) -> object:
        if x.std(dim=(1, 2, 3)).max() > 0.75:  # the noisy one is among them
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, x, **options)

    for number, path in enumerate(sorted(pictures.iterdir())):
        Image.new("RGB", (64, 64), (20 * number, 9, 9)).save(path)
    Image.effect_noise((64, 64), 300).save(pictures / "4.png")
    monkeypatch.setattr(Explainer, "forward", limited)
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json")
    assert result.code == 1
    assert len(result.records) == 8
    assert "4.png: out of memory, even alone" in result.err


@pytest.mark.parametrize(("error", "code"), [(EngineError("no rule for it"), 5), (ConfigError("no rule for a"), 4)])
def test_a_model_that_cannot_be_explained_ends_the_run(
    lrp, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(Explainer, "forward", refuse)
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json")
    assert result.code == code
    assert result.out == ""
    assert str(error) in result.err.splitlines()[-1]
    one = lrp.explain(pictures / "0.png", "-o", tmp_path / "one", "--json")
    assert one.code == code


def test_one_picture_that_cannot_be_explained_does_not_spoil_its_neighbours(
    lrp, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lrp.explain(pictures, "-o", tmp_path / "a", "--json", "-c", "epsilon-plus-flat").records
    forward = Explainer.forward
    spoilt: list[torch.Tensor] = []

    def picky(self: Explainer, x: torch.Tensor, **options: object) -> object:
        if not spoilt:
            spoilt.append(x[3].clone())
        if any(torch.equal(one, spoilt[0]) for one in x):
            raise EngineError("a value is not finite")
        return forward(self, x, **options)

    monkeypatch.setattr(Explainer, "forward", picky)
    result = lrp.explain(pictures, "-o", tmp_path / "b", "--json", "-c", "epsilon-plus-flat")
    assert result.code == 1
    assert "3.png: a value is not finite" in result.err
    del expected[3]
    assert [record["score"] for record in result.records] == pytest.approx(
        [record["score"] for record in expected], rel=1e-4
    )


@pytest.mark.parametrize("what_helps", ["more room", "keeping nothing"])
def test_a_picture_that_does_not_fit_alone_is_tried_again_where_that_may_help(
    lrp, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what_helps: str
) -> None:
    forward, rooms = Explainer.forward, []

    def limited(self: Explainer, x: torch.Tensor, **options: object) -> object:
        if len(x) > 1 or (self.is_keeping if what_helps == "keeping nothing" else len(rooms) < 6):
            raise MemoryError
        return forward(self, x, **options)

    def make_room() -> bool:
        rooms.append(what_helps == "more room")
        return rooms[-1]

    monkeypatch.setattr(Explainer, "forward", limited)
    monkeypatch.setattr("lrp_cli.runs.network.make_room", make_room)
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json", "-b", "2", "--threads", "1")
    assert result.code == 0
    assert len(result.records) == 9


def test_an_explainer_that_keeps_nothing_any_more_explains_alike() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    explainer, x = Explainer(net.eval(), "epsilon-plus"), torch.randn(2, 3, 8, 8)
    expected = explainer.explain(x, 1).relevance
    assert explainer.is_keeping
    assert explainer._cache.tensors()
    explainer.stop_keeping()
    for _ in range(12):  # programs included
        torch.testing.assert_close(explainer.explain(x, 1).relevance, expected)
    assert not explainer.is_keeping
    assert not explainer._cache.tensors()


def group(directory: Path, most: int | str, version: int = 2, taken: int = 90, cached: int = 6) -> None:
    """Write what a control group may take, in MiB, has taken, and holds of files."""
    directory.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (most, taken), strict=True):
        (directory / name).write_text(f"{value if isinstance(value, str) else value * 2**20}\n")
    total = "" if version == 2 else "total_"
    parts = (cached - 3, 2, 1)
    lines = zip(("inactive_file", "active_file", "slab_reclaimable"), parts, strict=True)
    (directory / "memory.stat").write_text(
        "anon 1\n" + "".join(f"{total}{name} {value * 2**20}\n" for name, value in lines)
    )


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere nothing is limited")
@pytest.mark.parametrize(
    ("member", "place", "version"),
    [
        ("0::/", "", 2),
        ("0::/job/step", "job/step", 2),
        ("0::/job/step", "job", 2),
        ("0::/docker/0a1b", "", 2),
        ("9:cpu,cpuacct:/job\n8:memory:/job", "memory/job", 1),
        ("8:memory:/docker/0a1b", "memory", 1),
    ],
)
def test_a_container_s_limit_counts_and_its_cached_files_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str, place: str, version: int
) -> None:
    """Of the group that this process is in and of those that it is part of; in containers of the root, too."""
    (tmp_path / "cgroup").write_text(f"{member}\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "HIERARCHIES", tmp_path)
    assert memory.free_memory() > 10 * 2**20
    group(tmp_path / place, 94, version)
    assert memory.free_memory() == 10 * 2**20
    group(tmp_path / place, 80, version)
    assert memory.free_memory() == 0
    group(tmp_path / place, "max" if version == 2 else str(2**63 - 4096), version)
    assert memory.free_memory() > 10 * 2**20


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere nothing is limited")
@pytest.mark.parametrize("own", [None, 2**32, 2**33 + 2**29], ids=["no limit", "a low limit", "a higher limit"])
def test_a_limit_of_the_user_s_own_stays(own: int | None) -> None:
    code = f"""
import resource
from lrp_cli.runs import memory
own, hard = {own}, resource.getrlimit(resource.RLIMIT_DATA)[1]
if own:
    resource.setrlimit(resource.RLIMIT_DATA, (own, hard))
memory.free_memory = lambda: 2**33
def limit():
    return memory.limit_to_free_memory(0)
for step in limit, memory.make_room, memory.make_room, limit, *[memory.make_room] * 9:
    print(step(), resource.getrlimit(resource.RLIMIT_DATA)[0])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    said, limits = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    first, second, third, again, *others = map(int, limits)
    assert said[-1] == "False", "nothing is gained any more"
    if own == 2**32:
        assert set(limits) == {str(own)}
        assert set(said) == {"None", "False"}
    else:
        assert said[1] == "True"
        assert second - first == pytest.approx(memory.RESERVE / 2, abs=2**23)
        assert again == pytest.approx(first, abs=2**24)
        assert max(second, third, *others) <= (own or first + memory.RESERVE + 2**24)
        assert max(others) > first + memory.RESERVE / 2


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere nothing is limited")
@pytest.mark.parametrize(("expected", "started"), [(40, "40"), (0, "fewer")])
def test_stacks_of_threads_to_come_do_not_count_as_memory(expected: int, started: str) -> None:
    """Of the 8 MiB that each is promised, hardly any is used."""
    code = f"""
import resource, threading
from lrp_cli.runs import memory
resource.setrlimit(resource.RLIMIT_STACK, (2**23, resource.getrlimit(resource.RLIMIT_STACK)[1]))
memory.free_memory = lambda: 2**26
memory.limit_to_free_memory({expected})
over, threads = threading.Event(), []
try:
    while len(threads) < 40:
        threads.append(threading.Thread(target=over.wait))
        threads[-1].start()
except RuntimeError:
    threads.pop()
over.set()
print(len(threads) if len(threads) == 40 else "fewer")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == started


def test_threads_that_cannot_all_be_started_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def scarce(self: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    with pytest.raises(RuntimeError, match="new thread"):
        threads_at_work(3, "scarce")
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_threads_have_begun_when_they_are_asked_for() -> None:
    with threads_at_work(3, "begun"):
        assert sum(thread.name.startswith("begun") for thread in threading.enumerate()) == 3


def test_a_run_that_can_start_no_threads_says_so(
    lrp, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("lrp_cli.runs.pipeline.threads_at_work", refuse)
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("lrp: no more threads can be started: raise the limit")
    assert "Traceback" not in result.err


def test_out_of_memory_where_results_are_recorded_ends_the_run_and_says_how_to_go_on(
    lrp, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, recorded = Recorder.record, []

    def limited(self: Recorder, *arguments: Any) -> object:
        if len(recorded) == 3:
            raise MemoryError
        recorded.append(arguments)
        return record(self, *arguments)

    monkeypatch.setattr(Recorder, "record", limited)
    result = lrp.explain(pictures, "-o", tmp_path / "out", "--json", "-b", "2")
    assert result.code == 1
    assert len(result.records) == 3
    assert "the same command goes on from there" in result.err
    assert result.err.splitlines()[-1] == "lrp: out of memory: close other programs, or take a smaller model"
    monkeypatch.undo()
    again = lrp.explain(pictures, "-o", tmp_path / "out", "--json")
    assert again.code == 0
    assert sum(not record.get("skipped") for record in again.records) == 6


SCARCE = """
import sys
from lrp_cli.runs import memory
free, begin = int(sys.argv.pop(1)) * 2**20, []
def free_memory():
    begin.append(memory._used())
    return max(free - begin[-1] + begin[0], 0)
memory.free_memory = free_memory
from lrp_cli.__main__ import main
main()
"""
"""Run lrp with so many MiB free, as of when it first asks."""

LIMITED = """
import resource, sys
free = int(sys.argv.pop(1)) * 2**20
import lrp_cli.explainer, lrp_cli.models  # what needs memory as well, but is not the point
from lrp_cli.runs import memory
data = memory._in_status("VmData")
resource.setrlimit(resource.RLIMIT_DATA, (data + free, data + free))
from lrp_cli.__main__ import main
main()
"""
"""Run lrp with a limit of the user's own, so many MiB above what its libraries take."""


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere nothing is limited")
@pytest.mark.parametrize(
    ("script", "mebibytes", "options", "code", "said"),
    [
        (SCARCE, 2500, ("-b", "12"), 0, "12 pictures explained"),
        (SCARCE, 300, ("-b", "12", "--threads", "2"), 0, "out of memory: going on with smaller batches"),
        (SCARCE, 1000, ("--resize", "4000", "--crop", "4000"), 1, "1.png: out of memory"),
        (LIMITED, 200, ("--model", "vgg16", "--weights", "random"), 1, "lrp: out of memory"),
        (LIMITED, 200, ("--model", "vgg11", "--weights", "large.pth"), 1, "lrp: out of memory"),
        (LIMITED, 200, ("--model", "vgg11", "--weights", "large.safetensors"), 1, "lrp: out of memory"),
    ],
)
def test_memory_that_there_is_not_is_refused_and_not_promised(
    script: str, mebibytes: int, options: tuple[str, ...], code: int, said: str, tmp_path: Path, make_picture: Make
) -> None:
    """Linux would go on until it has to kill the process."""
    for number in range(12 if "-b" in options else 2):
        make_picture(tmp_path / f"in/{number}.png", number)
    if options[-1].startswith("large"):
        large = {"classifier.6.weight": torch.zeros(100_000_000)}
        (torch.save if options[-1].endswith("pth") else save_file)(large, tmp_path / options[-1])
        options = (*options[:-1], str(tmp_path / options[-1]))
    command = [sys.executable, "-c", script, str(mebibytes), "explain", str(tmp_path / "in"), *options]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if code == 0:
        assert len(list((tmp_path / "out").glob("*.npy"))) == 12
        assert ("smaller batches" in done.stderr) == (mebibytes == 300)


NO_MACHINE_CODE = """
import resource, sys, torch
from lrp_cli.runs import memory
from lrp_cli.runs.workplace import Workplace

def convolved(size):
    try:
        return torch.conv2d(torch.ones(1, 16, size, size), torch.ones(16, 16, 3, 3)).shape[2]
    except RuntimeError as error:
        return "no machine code" if str(error) == "could not create a primitive" else None

torch.set_num_threads(2)
convolved(8)
pieces = [torch.empty(30_000) for _ in range(800)]
workplace = Workplace()
limit, hard = resource.getrlimit(resource.RLIMIT_DATA)
resource.setrlimit(resource.RLIMIT_DATA, (memory._in_status("VmData"), hard))
del pieces[::2]  # leaves room for small tensors
failed = any(convolved(size) == "no machine code" for size in range(9, 60))
resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
print(failed, workplace.work(lambda: convolved(62)))
workplace.renew()
print(workplace.work(lambda: convolved(62)), workplace.work(lambda: convolved(61)))
workplace.renew()
print(workplace.work(lambda: convolved(62)), workplace.work(torch.get_num_threads))
workplace.close()
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere nothing is limited")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
def test_a_thread_that_had_no_memory_for_machine_code_is_replaced() -> None:
    """There is memory again in each line that the script prints; the first shows that this does not help by itself."""
    done = subprocess.run([sys.executable, "-c", NO_MACHINE_CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    if done.stdout.startswith("False"):
        pytest.skip("on this processor oneDNN found memory for all of its machine code")
    assert done.stdout.splitlines() == ["True no machine code", "60 59", "60 2"]


SCRIPT = """
import json, sys
from pathlib import Path
from lrp_cli.cli.report import Report
seen = []
def resident():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
add = Report.add
count = 0
def counting(self, outcomes):
    global count
    add(self, outcomes)
    count += 1
    if count in (50, 100, 150) or count % 250 == 0:
        seen.append((count, resident()))
Report.add = counting
from lrp_cli.__main__ import main
sys.argv = ["lrp", *sys.argv[1:]]
try:
    main()
finally:
    print(json.dumps(seen), file=sys.stderr)
"""


def resident(pictures: Path, out: Path) -> dict[int, int]:
    options = ["--resize", "32", "--crop", "32", "-c", "epsilon", "-b", "4", "--json", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "explain", str(pictures), *options, "-o", str(out)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path, make_picture: Make) -> None:
    for seed in range(250):
        make_picture(tmp_path / f"in/{seed:04}.png", seed, size=(32, 32))
    sizes = resident(tmp_path / "in", tmp_path / "out")
    assert sizes[250] <= 1.05 * sizes[50], sizes


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_memory_after_fifty_and_after_ten_thousand_pictures(tmp_path: Path, make_picture: Make) -> None:
    for seed in range(10_000):
        make_picture(tmp_path / f"in/{seed:04}.png", seed, size=(32, 32))
    sizes = resident(tmp_path / "in", tmp_path / "out")
    assert sizes[10_000] <= 1.05 * sizes[50], sizes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
def test_memory_of_a_tensor_that_is_gone_serves_the_next_one() -> None:
    code = """
import resource, torch
from lrp_cli.runs.memory import keep_freed_memory
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = pages()
keep_freed_memory()
pages()  # until there is enough of it
print(before, pages())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
def test_memory_of_tensors_that_are_gone_serves_other_threads() -> None:
    """Without that, four threads that need 40 MiB each, one after the other, leave the process 300 MiB larger."""
    code = """
import torch
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from lrp_cli.runs.memory import keep_freed_memory
def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])
def work():
    for _ in range(5):
        [torch.ones(500_000) for _ in range(20)]
keep_freed_memory()
work()
before = resident()
for thread in [ThreadPoolExecutor(1) for _ in range(4)]:
    thread.submit(work).result()
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150 * 2**20
