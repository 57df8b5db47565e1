"""Lines of the network libraries go into a file, those of the run stay on the screen."""

from pathlib import Path

import pytest

from megadeberta.launcher import network_log
from megadeberta.launcher.network_log import NetworkLog

PAGE = """\
[rank1]:[E1130 03:21:14.123456789 ProcessGroupNCCL.cpp:632] [Rank 1] Watchdog caught collective operation timeout
Exception raised from checkTimeout at ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:632 (most recent call first):
frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x96 (0x7f3 in /usr/lib/libc10.so)
frame #1: <unknown function> + 0x145c0 (0x7f4 in /usr/lib/libtorch.so)

[W1130 03:21:14.123456789 socket.cpp:200] [c10d] The hostname of the client socket cannot be retrieved. err=-3
[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242
node-7:4711:4790 [3] NCCL INFO Bootstrap : Using eth0:10.0.0.7<0>
node-7:4711:4790 [3] misc/socket.cc:484 NCCL WARN socketStartConnect: Connect to 10.0.0.8<41> failed
terminate called after throwing an instance of 'c10::DistBackendError'
  what():  [PG ID 0 PG GUID 0 Rank 1] Process group watchdog thread terminated with exception
""".splitlines()
OWN = """\
step 10/100 loss 6.9 | [cached] 3:12
[rank 1] warning: step 4: the loss is nan
  File "/usr/lib/python3/site.py", line 3 in main
terminate called after throwing an instance of 'std::bad_alloc'
error: another rank ended or stopped answering (Connection closed by peer)

frame #1: of a rank that wrote nothing before
""".splitlines()


@pytest.mark.parametrize("rank", [1, None])
def test_pages_of_the_network_libraries_are_in_the_file_and_named_once(tmp_path: Path, rank: int | None) -> None:
    said: list[str] = []
    path = tmp_path / "network.log"
    log = NetworkLog(path, said.append)
    mark = "" if rank is not None else "nodeB: "
    assert all(log.take(rank, mark + line) for line in PAGE)
    assert not any(log.take(rank, mark + line) for line in OWN)
    log.close()
    assert said == [f"what the network libraries write is in {path}"]
    source = "rank 1" if rank is not None else "nodeB"
    written = [line.split(" ", 1)[1] for line in path.read_text().splitlines()]
    assert written == [f"{source}: {line}" for line in PAGE]


def test_lines_of_two_ranks_between_each_other_stay_with_theirs(tmp_path: Path) -> None:
    log = NetworkLog(tmp_path / "network.log", lambda line: None)
    assert log.take(0, PAGE[0])
    assert not log.take(1, "")
    assert log.take(0, PAGE[2])


def test_nothing_to_write_makes_no_file_and_one_that_cannot_be_written_shows_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "network.log"
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    NetworkLog(path, lambda line: None).close()
    assert not path.exists()
    path.symlink_to(precious)
    log = NetworkLog(path, lambda line: None)
    assert not any(log.take(1, line) for line in PAGE)
    assert not NetworkLog(None, lambda line: None).take(1, PAGE[0])
    assert precious.read_text() == "keep me"


def test_one_start_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_log, "_MOST_BYTES", 1000)
    log = NetworkLog(tmp_path / "network.log", lambda line: None)
    assert all(log.take(1, PAGE[7]) for _ in range(100))
    assert 0 < (tmp_path / "network.log").stat().st_size <= 1000
