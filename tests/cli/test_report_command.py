"""`unistep report`, as a user meets it."""

from run_files import training, write_log, write_run


def test_a_page(run, here):
    for name in ("one", "two"):
        write_log(write_run(here / name) / "teacher", training(20))
    outcome = run("report", "one", "two", "--output", "page.html")
    assert (outcome.code, outcome.err) == (0, "") and outcome.out.startswith("page.html: 2 runs, 0.")
    assert run("report", "one").out.startswith("report.html: 1 run, ")
    assert (here / "report.html").read_text().startswith("<!doctype html>")


def test_refusals(refused, here):
    write_run(here / "one")
    refused(["report"], "RUNS is missing")
    refused(["report", "one", "two"], "two is not a run directory")
    refused(["report", "one", "--output", "x.png"], "--output", ".html")
    refused(["report", "one", ""], "is empty")
