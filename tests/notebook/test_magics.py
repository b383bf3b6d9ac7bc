"""The magics in real notebooks: what a cell shows, when, and what it leaves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.notebook.conftest import error, eventually, forms, stream

if TYPE_CHECKING:
    from pathlib import Path

    import enginery
    from tests.notebook.conftest import Notebook

PNG = "iVBOR"  # what a PNG begins with, in base64


def test_output_is_tagged_and_in_order(notebook: Notebook) -> None:
    """Lines carry their engine; results come after all output, in the order of the engines."""
    outputs = notebook.run("%%px\nfor i in range(3):\n    print(i)\nid * 10")
    for engine in (0, 1):
        tag = f"[stdout:{engine}] "
        assert [line for line in stream(outputs).splitlines() if line.startswith(tag)] == [
            f"{tag}{i}" for i in range(3)
        ]
    results = forms(outputs)
    assert [text.split(": ")[1] for text in results] == ["0", "10"]
    assert results[0].startswith("Out[0:")
    assert results[1].startswith("Out[1:")


def test_output_streams_while_the_call_runs(notebook: Notebook, tmp_path: Path) -> None:
    """What an engine prints is in the notebook before the call ends: the call waits until it was seen there."""
    seen = tmp_path / "seen"
    outputs = notebook.run(
        "%%px --targets 0\nimport pathlib, time\nprint('early', flush=True)\n"
        f"while not pathlib.Path({str(seen)!r}).exists():\n    time.sleep(0.01)\nprint('late')",
        at="[stdout:0] early\n",
        then=seen.touch,
    )
    assert stream(outputs) == "[stdout:0] early\n[stdout:0] late\n"


def test_a_line_is_shown_before_it_is_full(notebook: Notebook, tmp_path: Path) -> None:
    """If it stays so for a moment; then it ends where it is. Output that goes on leaves no empty places."""
    seen = tmp_path / "seen"
    outputs = notebook.run(
        "%%px --targets 0\nimport pathlib, time\nprint('first\\nworks', end='', flush=True)\n"
        f"while not pathlib.Path({str(seen)!r}).exists():\n    time.sleep(0.01)\nprint(' well\\nlast')",
        shows="[stdout:0] works",
        then=seen.touch,
    )
    assert stream(outputs) == "[stdout:0] first\n[stdout:0] last\n"
    assert forms(outputs) == ["[stdout:0] works well"]
    notebook.run("from enginery import _cell\ntick, _cell.TICK = _cell.TICK, 1")  # longer than a machine halts
    outputs = notebook.run("%%px\nfor i in range(20_000): print(i)")
    notebook.run("_cell.TICK = tick")
    assert len(stream(outputs).splitlines()) == 40_000
    assert forms(outputs) == []


def test_rich_displays_come_back_as_they_are(notebook: Notebook) -> None:
    """HTML and figures, shown by user code or as the last value, are outputs of that type here."""
    outputs = notebook.run(
        "%%px -t 0\n%matplotlib inline\nfrom IPython.display import HTML, display as show\n"
        "import matplotlib.pyplot as plt\nshow(HTML('<b>first</b>'))\nprint('between')\n"
        "plt.plot([1, 2]); plt.show()\nHTML('<i>last</i>')"
    )
    assert forms(outputs, "text/html") == ["<b>first</b>", "<i>last</i>"]
    (figure,) = forms(outputs, "image/png")
    assert figure.startswith(PNG)
    kinds = [
        next(
            (mime for mime in ("text/html", "image/png") if mime in output.get("data", {})), output.output_type
        )
        for output in outputs
    ]
    assert [kind for kind in kinds if kind != "display_data"] == [
        "text/html",
        "stream",
        "image/png",
        "text/html",
    ]
    assert forms(outputs)[-2].startswith("Out[0:")


def test_displays_are_changed_in_their_places(notebook: Notebook) -> None:
    """By a handle, by their id, and by what IPython makes of these; also where all is shown at the end."""
    code = (
        "from IPython.display import HTML, ProgressBar, update_display\n"
        "handle = display(HTML('<b>0</b>'), display_id=True)\nprint('-')\nhandle.update(HTML('<b>1</b>'))\n"
        "display('here', display_id='a')\nupdate_display('there', display_id='a')\nlist(ProgressBar(3))\nNone"
    )
    for options in ("", "--no-stream"):
        outputs = notebook.run(f"%%px -t 0 {options}\n{code}")
        first, bar = forms(outputs, "text/html")
        assert first == "<b>1</b>"
        assert "value='3'" in bar
        assert "'there'" in forms(outputs)
        assert "'here'" not in forms(outputs)
        assert not any("enginery" in str(output.metadata) for output in outputs if "metadata" in output)


def test_displays_larger_than_a_message(notebook: Notebook) -> None:
    """A large form does not come with the events: it takes its place when the call ends."""
    outputs = notebook.run(
        "%%px -t 1\nclass Large:\n    def _repr_html_(self):\n        return '<p>' + 'x' * 3_000_000\n"
        "display(Large())\nprint('after')"
    )
    (html,) = forms(outputs, "text/html")
    assert len(html) > 3_000_000
    assert stream(outputs) == "[stdout:1] after\n"


def test_progress_bars_of_engines(notebook: Notebook) -> None:
    """tqdm on two engines: one output with both bars, which end full; nested bars leave one line each."""
    outputs = notebook.run(
        "%%px\nimport time\nfrom tqdm.auto import tqdm\nfor i in tqdm(range(4), desc='outer'):\n"
        "    for j in tqdm(range(3), desc='inner', leave=False):\n        time.sleep(0.04)"
    )
    shown = "\n".join([*forms(outputs), stream(outputs, "stderr")])
    for engine in (0, 1):
        lines = [line for line in shown.splitlines() if line.startswith(f"[stderr:{engine}] ")]
        assert len(lines) == 1, shown
        assert "outer: 100%" in lines[0]


def test_a_bar_of_calls_is_an_output_that_changes(notebook: Notebook) -> None:
    """It ends with all of them, and is not drawn for each."""
    outputs = notebook.run("enginery.Group([client.submit(abs, -n) for n in range(500)]).wait_interactive()")
    (bar,) = forms(outputs, "text/html")
    assert 'value="500" max="500"' in bar
    assert forms(outputs)[0].startswith("Group of apply tasks 500/500 0:00:")


def test_stop_button_cancels_the_call(notebook: Notebook, cluster: enginery.Cluster, tmp_path: Path) -> None:
    """Interrupting the notebook interrupts the call on its engines; what they hold stays, and they are free."""
    notebook.run("%px kept = 7")
    zero = str(tmp_path / "zero")  # engine 1 says that it has begun when engine 0 has
    outputs = notebook.run(
        f"%%px\nimport pathlib, time\nzero = pathlib.Path({zero!r})\ntry:\n    if id == 0: zero.touch()\n"
        "    while not zero.exists(): time.sleep(0.01)\n    print('begun')\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('cleaned up')\n    raise",
        fails=True,
        at="[stdout:1] begun",
        then=notebook.interrupt,
    )
    assert error(outputs) == "KeyboardInterrupt\nexecute on engines 0, 1: cancelled"
    assert "[stdout:0] cleaned up\n" in stream(outputs)
    assert "[stdout:1] cleaned up\n" in stream(outputs)
    assert cluster.client[:].pull("kept") == [7, 7]


def test_errors_show_their_remote_tracebacks(notebook: Notebook) -> None:
    """One engine's error is that error; several engines' a CompositeError, which shows what is alike once."""
    shown = error(notebook.run("%px --targets 1 1/0", fails=True))
    assert shown.rstrip().endswith("ZeroDivisionError: division by zero")
    assert shown.count("ZeroDivisionError") == 1
    assert "magics.py" not in shown
    shown = error(notebook.run("%%px -t 0\nfor", fails=True))
    assert shown.rstrip().endswith("SyntaxError: invalid syntax")
    assert len(shown.splitlines()) < 6
    shown = error(notebook.run("%%px\ndef deep():\n    return {}['missing']\ndeep()", fails=True))
    assert shown.count("return {}['missing']") == 1
    assert "[0:execute], [1:execute]" in shown
    assert "CompositeError: execute failed on 2 of 2 engines" in shown
    assert "magics.py" not in shown


def test_mistakes_are_told_in_one_line(notebook: Notebook, tmp_path: Path) -> None:
    """Engines and clusters that are not there, and options that are none."""
    empty = tmp_path / "client.json"
    empty.touch(0o600)
    for mistake, told in (
        ("%px -t 7 1", "no engine 7; there are: 0, 1"),
        (f"%pxconfig --connect {empty}", f"{empty} is not a connection file"),
        ("%px --timeout -1 1", "timeout of -1 s is not within"),
        ("%pxresult 'open", "%pxresult: No closing quotation"),
    ):
        outputs = notebook.run(mistake)
        assert stream(outputs, "stderr").startswith(f"UsageError: {told}"), outputs
        assert len(stream(outputs, "stderr").splitlines()) == 1


def test_engines_say_that_they_run_python(notebook: Notebook) -> None:
    """Lines that are IPython's and not Python's are for engines of IPython's shell, and no others know them."""
    for code, line in (("%px !ls", "!ls"), ("%%px\nif True:\n    %time 1", "%time 1")):
        assert f"SyntaxError: engines run Python, which has no `{line}`" in error(
            notebook.run(code, fails=True)
        )
    assert stream(notebook.run("%%px -t 0\nprint('''\n%time\n'''.strip(), 7\n% 4)")) == "[stdout:0] %time 3\n"


def test_timeout_ends_the_call(notebook: Notebook) -> None:
    """--timeout stops it on its engine."""
    shown = error(notebook.run("%%px --targets 0 --timeout 0.2\nimport time\ntime.sleep(60)", fails=True))
    assert "OperationTimedOut" in shown


def test_noblock_and_pxresult(notebook: Notebook) -> None:
    """--noblock returns at once, --out keeps the Group; %pxresult shows everything, grouped as asked for."""
    outputs = notebook.run("%%px --noblock --out later\nprint('printed')\ndisplay('shown')\n'value'")
    assert "Group execute" in forms(outputs)[0]
    outputs = notebook.run("%pxresult --group-outputs engine")
    assert stream(outputs) == "[stdout:0] printed\n[stdout:1] printed\n"
    texts = [text.split(": ")[-1] for text in forms(outputs)]
    assert [text for text in texts if text in ("'shown'", "'value'")] == ["'shown'", "'value'"] * 2
    assert stream(notebook.run("print([r.value for r in later.result()])")) == "['value', 'value']\n"


def test_local_runs_here_too(notebook: Notebook) -> None:
    """--local runs the cell on the engines and in the notebook."""
    notebook.run("%%px --local\nboth = 1 + 1")
    assert stream(notebook.run("print(both, client[:]['both'])")) == "2 [2, 2]\n"


def test_autopx(notebook: Notebook) -> None:
    """Cells between %autopx and %autopx run on the engines, and not here."""
    assert stream(notebook.run("%autopx")) == "%autopx on\n"
    outputs = notebook.run("there = id\nif there:\n    print('second')\nthere")
    assert stream(outputs) == "[stdout:1] second\n"
    assert stream(notebook.run("%pxconfig")).startswith("targets: all;")
    assert stream(notebook.run("%autopx")) == "%autopx off\n"
    assert stream(notebook.run("print('there' in globals(), client[:]['there'])")) == "False [0, 1]\n"


def test_pxconfig_sets_what_holds(notebook: Notebook) -> None:
    """Targets and the like hold until they are set again; a wrong one is told at once."""
    notebook.run("%pxconfig --targets 1 --no-stream")
    outputs = notebook.run("%px print(id)")
    assert stream(outputs) == "[stdout:1] 1\n"
    assert "no engine 9" in stream(notebook.run("%pxconfig --targets 9"), "stderr")
    notebook.run("%pxconfig --targets all --stream")


def test_the_client_of_the_notebook_is_used(notebook: Notebook, cluster: enginery.Cluster) -> None:
    """Also when its name means another; of several the one that was used till now, unless none was."""
    notebook.run("first = client")
    used = "get_ipython().magics_manager.magics['line']['px'].__self__._engines.client"
    notebook.run(f"%px 1\nclient = enginery.connect({str(cluster.state_dir)!r})")
    assert stream(notebook.run(f"print({used} is first)")) == "True\n"
    notebook.run("first.close()")
    assert stream(notebook.run(f"print({used} is client)")) == "True\n"
    notebook.run(f"client = enginery.connect({str(cluster.state_dir)!r})")
    assert stream(notebook.run(f"print({used} is client)")) == "True\n"


def test_magics_with_a_suffix(notebook: Notebook) -> None:
    """A view can have magics of its own beside those of the rest."""
    notebook.run("client[1].activate('_second')")
    assert stream(notebook.run("%px_second print(id)")) == "[stdout:1] 1\n"
    assert stream(notebook.run("%%px_second --noblock\nprint(id * 2)")) == ""
    assert stream(notebook.run("%pxresult_second")) == "[stdout:1] 2\n"


def test_attaching_to_what_runs(notebook: Notebook, cluster: enginery.Cluster) -> None:
    """%pxattach shows what an operation of another client printed from its first line on, and its result."""
    operation = cluster.client[0].execute(
        "import time\nprint('begun', flush=True)\nwhile not globals().get('go'):\n    time.sleep(0.01)\n'done'",
        block=False,
    )
    eventually(lambda: "begun" in operation.stdout)
    outputs = notebook.run("%pxattach", at="begun", then=notebook.interrupt)
    assert stream(outputs).startswith("[stdout:0] begun\ndetached, what runs goes on: %pxattach ")
    assert operation.status == "running"
    operation.interrupt()
    shown = error(notebook.run(f"%pxattach {operation.id}", fails=True))
    assert "KeyboardInterrupt" in shown
    assert stream(notebook.run("%pxattach")).startswith("nothing runs")


def test_attaching_to_tasks(notebook: Notebook, tmp_path: Path) -> None:
    """Those that wait and those that run, in the order of their submission; each is tagged by where it runs."""
    go = tmp_path / "go"
    notebook.run(
        "def speak(number):\n    import pathlib, time\n    print('task', number, flush=True)\n"
        f"    while not pathlib.Path({str(go)!r}).exists():\n        time.sleep(0.01)\n    return number\n"
        "tasks = [client.submit(speak, number) for number in range(4)]"
    )
    outputs = notebook.run("%pxattach", at="] task 1\n", then=go.touch)
    lines = stream(outputs).splitlines()
    assert sorted(line.partition("] ")[2] for line in lines) == [f"task {number}" for number in range(4)]
    assert {line.partition("] ")[0] for line in lines} == {"[stdout:0", "[stdout:1"}
    assert [text.partition(": ")[2] for text in forms(outputs)] == ["0", "1", "2", "3"]


def test_a_restarted_notebook_comes_back(notebook: Notebook, cluster: enginery.Cluster, tmp_path: Path) -> None:
    """What it began goes on without it; it finds that again, and shows it from the first line to the result."""
    go = tmp_path / "go"
    notebook.run(
        "%%px --noblock\nimport pathlib, time\nprint('begun', flush=True)\n"
        f"while not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.01)\nprint('ended')\nid"
    )
    eventually(lambda: len(cluster.client.operations(state="running")) == 2)
    notebook.restart()
    notebook.begin(cluster)
    outputs = notebook.run("%pxattach", at="[stdout:1] begun\n", then=go.touch)
    for engine in (0, 1):
        lines = [line for line in stream(outputs).splitlines() if f":{engine}]" in line]
        assert lines == [f"[stdout:{engine}] begun", f"[stdout:{engine}] ended"]
    assert [text.split(": ")[1] for text in forms(outputs)] == ["0", "1"]


def test_results_of_plain_calls_show_richly(notebook: Notebook) -> None:
    """A result of `execute` shows as the value does that it stands for: HTML, or JSON as data."""
    outputs = notebook.run("client[0].execute(\"from IPython.display import HTML; HTML('<u>x</u>')\")")
    assert forms(outputs, "text/html") == ["<u>x</u>"]
    assert forms(outputs)[0].startswith("<ExecuteResult [0:")
    outputs = notebook.run("client[0].execute(\"from IPython.display import JSON; JSON({'a': [1]})\").shown")
    assert forms(outputs, "application/json") == [{"a": [1]}]


def test_errors_of_plain_calls_are_short(notebook: Notebook) -> None:
    """What is alike is shown once, with the lines of the cells; the rest on demand, as the last line says."""
    notebook.run("def deep(n):\n    raise ValueError(n)")
    shown = error(notebook.run("client[:].apply(deep, 1)", fails=True))
    assert "Exception Group" not in shown
    assert shown.count("    raise ValueError(n)\n") == 1
    assert re.findall(r"  (Cell In\[\d+\], line \d, in .*)", shown)[1].endswith(", line 2, in deep")
    assert "views.py" not in shown
    shown = error(
        notebook.run("enginery.Group([client.submit(deep, n) for n in range(30)]).result()", fails=True)
    )
    told = shown.splitlines()[-1]
    assert told == "[... 26 more tracebacks and 11 more lines: sys.last_value.print_tracebacks() ...]"
    outputs = notebook.run("import sys; sys.last_value.print_tracebacks()")
    assert stream(outputs, "stderr").count("    raise ValueError(n)\n") == 30
