import shutil

import pytest

from ocmlflow.tracking import outbox
from ocmlflow.tracking.outbox import Outbox, RefusedError, UndeliveredError


@pytest.fixture
def server():
    """What arrived, by number or by file, and a switch that says how the server answers."""

    class Server:
        answer: Exception | None = None
        arrived: list

        def __call__(self, told, folder):
            if self.answer and told.get("n") != 99:
                raise self.answer
            if told.get("n") == 13:
                raise RefusedError("thirteen")
            files = sorted(path.name for path in folder.iterdir() if path.name != outbox.ENTRY_FILE)
            self.arrived.append((told["n"], *files))

    made = Server()
    made.arrived = []
    return made


def test_entries_arrive_in_order_with_their_files_and_the_folder_is_gone(tmp_path, server):
    box = Outbox(tmp_path / "run", server)
    for n in range(12):
        (tmp_path / "a.bin").write_bytes(b"x")
        box.put({"n": n}, *([tmp_path / "a.bin"] if n % 2 else []))
    box.close()
    assert server.arrived == [(n, "a.bin") if n % 2 else (n,) for n in range(12)]
    assert not (tmp_path / "run").exists()


def test_what_is_not_delivered_is_kept_and_delivered_later(tmp_path, server):
    server.answer = ConnectionError("away")
    box = Outbox(tmp_path / "run", server)
    box.put({"n": 0})
    with pytest.raises(UndeliveredError, match="still at work"):
        outbox.deliver_unsent(tmp_path / "run", server)
    box.put({"n": 1})
    with pytest.raises(UndeliveredError, match=r"2 entries are not sent, they are kept in .*run: away"):
        box.close()
    assert outbox.unsent(tmp_path) == [tmp_path / "run"]
    with pytest.raises(UndeliveredError, match="2 entries"):
        outbox.deliver_unsent(tmp_path / "run", server)
    server.answer = None
    outbox.deliver_unsent(tmp_path / "run", server)
    assert server.arrived == [(0,), (1,)]
    assert not outbox.unsent(tmp_path)


def test_a_later_entry_of_a_slot_takes_the_place_of_one_not_delivered(tmp_path, server):
    server.answer = ConnectionError("away")
    box = Outbox(tmp_path / "run", server)
    for n in range(5):
        box.put({"n": n}, slot="state" if n in (1, 3) else "")
    with pytest.raises(UndeliveredError):
        box.close()
    server.answer = None
    outbox.deliver_unsent(tmp_path / "run", server)
    assert server.arrived == [(0,), (2,), (3,), (4,)]


def test_what_is_refused_holds_up_nothing_and_is_not_thrown_away(tmp_path, server):
    box = Outbox(tmp_path / "run", server)
    for n in (1, 13, 2):
        box.put({"n": n})
    with pytest.raises(UndeliveredError, match=r"1 entries are not sent.*thirteen"):
        box.close()
    assert server.arrived == [(1,), (2,)]
    outbox.deliver_unsent(tmp_path / "run", lambda told, folder: server.arrived.append((told["n"],)))
    assert server.arrived == [(1,), (2,), (13,)]


def test_numbers_go_on_where_an_earlier_process_ended(tmp_path, server):
    server.answer = ConnectionError("away")
    for n in range(2):
        box = Outbox(tmp_path / "run", server)
        box.put({"n": n})
        with pytest.raises(UndeliveredError):
            box.close()
    server.answer = None
    outbox.deliver_unsent(tmp_path / "run", server)
    assert server.arrived == [(0,), (1,)]


def test_on_a_full_disk_the_files_stay_where_they_are(tmp_path, server, monkeypatch):
    box = Outbox(tmp_path / "run", server)
    (tmp_path / "a.bin").write_bytes(b"x")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "move", full)
        with pytest.raises(OSError, match="No space left"):
            box.put({"n": 0}, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").exists()
    box.put({"n": 1}, tmp_path / "a.bin")
    box.close()
    assert server.arrived == [(1, "a.bin")]
