"""The gate: a pytest plugin with one test for each case and phase, judged against the stored baseline.

    pytest --epwatch-gate                                   # the latest night of the history
    pytest --epwatch-gate --epwatch-plan PLAN.toml          # the latest night of this plan
    pytest --epwatch-gate --epwatch-measure -n auto         # measure now, then judge
    pytest -p jobs.gate --epwatch-gate                      # outside a checkout, from an installed wheel

The root conftest.py loads it; without `--epwatch-gate` it does nothing. With it pytest collects the gate's tests and no
others. A test passes when its series is `unchanged` or `improved`, and, unless `--epwatch-strict`, when it stayed
`inconclusive`. It fails when the series regressed, gave no valid result (`failed`, `wrong`, `hung`, `missing`), or has
too few baseline runs to be judged (`insufficient`: a gate that cannot judge must not be green). The failure message is
the verdict's sentence. No history, no night, no baseline: a usage error, never silence.

Under pytest-xdist the controller decides what is judged and the workers follow, so that all collect the same tests. The
first test that needs a measurement makes it behind a file lock and the others use it; judging is done by each worker.
Importing the module loads neither torch nor SQLAlchemy. Next to read: `jobs.judging`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from harness.errors import EpwatchError
from jobs.selection import DEFAULT_SUITE

if TYPE_CHECKING:
    from regress_db.nightverdict import SeriesVerdict

SUITE_FLOOR = 0.25
PASSES = frozenset({"unchanged", "improved"})
PASSES_UNLESS_STRICT = frozenset({"inconclusive"})

_WORKER_INPUT = "epwatch_gate"
_MEASURED = "measured.json"


class GateSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller decided and every worker follows.

    series: (case key, phase) of each test, in order. night: that is judged, "" where one has yet to be measured.
    plan: path of the plan that is measured, or whose floors hold; "" for none. db, baseline: as given, "" for the
    default. shared: folder of the lock and of the measurement's result.
    """

    series: tuple[tuple[str, str], ...]
    night: str
    plan: str
    db: str
    spool: str
    baseline: str
    strict: bool
    shared: str


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What came of measuring, shared by all workers: the night, or why there is none."""

    night: str = ""
    error: str = ""


class GateFailure(Exception):
    """A verdict that does not pass; the message is all there is to say."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The gate's options."""
    group = parser.getgroup("epwatch", "epwatch, the performance gate")
    group.addoption("--epwatch-gate", action="store_true", help="run the performance gate, and only the gate")
    group.addoption("--epwatch-measure", action="store_true", help="measure now instead of judging the latest night")
    group.addoption(
        "--epwatch-plan",
        metavar="PLAN.toml",
        default="",
        help=f"the plan to measure, or whose latest night is judged; measuring without one takes suite {DEFAULT_SUITE}",
    )
    group.addoption("--epwatch-night", metavar="ID", default="", help="the night to judge, instead of the latest")
    group.addoption("--epwatch-baseline", metavar="NAME", default="", help="the baseline, instead of the plan's")
    group.addoption("--epwatch-db", metavar="PATH|URL", default="", help="the history, as `epwatch --db` has it")
    group.addoption("--epwatch-spool", metavar="FOLDER", default="", help="the spool, as `epwatch --spool` has it")
    group.addoption("--epwatch-strict", action="store_true", help="fail what stayed inconclusive, too")


def pytest_configure(config: pytest.Config) -> None:
    """Switch the gate on where it is asked for."""
    if config.getoption("--epwatch-gate"):
        config.pluginmanager.register(Gate(config), "epwatch-gate")
        return
    for option in ("--epwatch-measure", "--epwatch-plan", "--epwatch-night", "--epwatch-baseline", "--epwatch-strict"):
        if config.getoption(option):
            raise pytest.UsageError(f"{option} goes with --epwatch-gate")


class Gate:
    """The hooks that are active in a run of the gate."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._judged: dict[tuple[str, str], SeriesVerdict] | None = None
        self._owned: Path | None = None
        try:
            self.setup = self._given() or self._decide()
        except EpwatchError as error:
            self._clean_up()
            raise pytest.UsageError(f"epwatch gate: {error}") from None

    def _given(self) -> GateSetup | None:
        """What the controller decided, when this process is a worker."""
        workerinput: dict[str, Any] | None = getattr(self._config, "workerinput", None)
        if workerinput is None:
            return None
        return msgspec.json.decode(workerinput[_WORKER_INPUT].encode(), type=GateSetup)

    def _decide(self) -> GateSetup:
        """What is judged, from the options and the history. Raises `EpwatchError`."""
        from jobs.plan import load, plan_of_cases

        option = self._config.getoption
        measure, night, plan_path = option("--epwatch-measure"), option("--epwatch-night"), option("--epwatch-plan")
        if measure and night:
            raise EpwatchError("--epwatch-measure measures a night of its own: leave --epwatch-night out")
        self._owned = Path(tempfile.mkdtemp(prefix="epwatch-gate-"))
        if measure and not plan_path:
            from harness.suites import SUITES

            plan_file = self._owned / "suite.toml"
            plan_file.write_text(plan_of_cases(DEFAULT_SUITE, SUITES[DEFAULT_SUITE], SUITE_FLOOR), encoding="utf-8")
            plan_path = str(plan_file)
        plan = load(Path(plan_path)) if plan_path else None
        series: list[tuple[str, str]]
        if measure:
            assert plan is not None
            from harness.case import PHASES

            series = [(planned.case.key, phase) for planned in plan.cases for phase in PHASES]
        else:
            from jobs.judging import settle_night
            from jobs.places import open_history

            with open_history(option("--epwatch-db") or None, plan) as history:
                found = settle_night(history, plan, night or None, option("--epwatch-baseline") or None)
            night, series = found.night, sorted({(one.case, one.phase) for one in found.series})
            if not series:
                raise EpwatchError(f"night {night} planned nothing: there is nothing to judge")
        return GateSetup(
            series=tuple(series),
            night=night,
            plan=plan_path,
            db=option("--epwatch-db"),
            spool=option("--epwatch-spool"),
            baseline=option("--epwatch-baseline"),
            strict=option("--epwatch-strict"),
            shared=str(self._owned),
        )

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell an xdist worker what was decided."""
        node.workerinput[_WORKER_INPUT] = msgspec.json.encode(self.setup).decode()

    def pytest_ignore_collect(self) -> bool:
        """Nothing but the gate is collected."""
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """The gate's tests, in place of whatever was collected."""
        items[:] = [
            GateItem.from_parent(
                session, name=f"{case}::{phase}", nodeid=f"epwatch::{case}::{phase}", gate=self, series=(case, phase)
            )
            for case, phase in self.setup.series
        ]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """What passed without being proved unchanged, in words."""
        notes = [
            value
            for report in terminalreporter.getreports("passed")
            for name, value in report.user_properties
            if name == "epwatch_note"
        ]
        if notes:
            terminalreporter.section("epwatch: passed, but not proved unchanged")
            for note in notes:
                terminalreporter.write_line(str(note))

    def pytest_unconfigure(self) -> None:
        """Remove what was shared between workers."""
        self._clean_up()

    def _clean_up(self) -> None:
        if self._owned is not None:
            shutil.rmtree(self._owned, ignore_errors=True)

    def verdict(self, series: tuple[str, str]) -> SeriesVerdict:
        """The verdict on a series; measures and judges first where that has not been done. Raises `GateFailure`."""
        if self._judged is None:
            from jobs.judging import settle_night
            from jobs.places import open_history
            from jobs.plan import load
            from regress_db.nightverdict import stored_verdict

            plan = load(Path(self.setup.plan)) if self.setup.plan else None
            measured = "" if self.setup.night else self._measured()
            try:
                with open_history(self.setup.db or None, plan) as history:
                    found = (
                        stored_verdict(history, measured)
                        if measured
                        else settle_night(history, plan, self.setup.night, self.setup.baseline or None)
                    )
            except EpwatchError as error:
                raise GateFailure(str(error)) from None
            # Worst first: where a case ran on several platforms, the worst of its verdicts counts.
            self._judged = {(one.case, one.phase): one for one in reversed(found.series)}
        if series not in self._judged:
            raise GateFailure(f"{series[1]} of {series[0]} has no verdict")
        return self._judged[series]

    def _measured(self) -> str:
        """The night that was measured for this run of the gate; whoever comes first measures it."""
        import filelock

        shared = Path(self.setup.shared)
        with filelock.FileLock(shared / "lock"):
            result = shared / _MEASURED
            if not result.exists():
                result.write_bytes(msgspec.json.encode(self._measure()))
            measured = msgspec.json.decode(result.read_bytes(), type=Measured)
        if measured.error:
            raise GateFailure(measured.error)
        return measured.night

    def _measure(self) -> Measured:
        """Run the plan's night in a process of its own, far from pytest's handlers and captures."""
        command = [sys.executable, "-m", "jobs", "nightly", self.setup.plan, "--json", "--no-report"]
        for option, value in (
            ("--db", self.setup.db),
            ("--spool", self.setup.spool),
            ("--baseline", self.setup.baseline or self._plan_baseline()),
        ):
            command += [option, value] if value else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            return Measured(night=msgspec.json.decode(done.stdout)["night"])
        except (msgspec.DecodeError, KeyError, TypeError):
            said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            return Measured(error=f"could not measure: {said[0]}")

    def _plan_baseline(self) -> str:
        """The plan's baseline: measuring for the gate never makes one."""
        from jobs.plan import load

        return load(Path(self.setup.plan)).baseline_name or ""


class GateItem(pytest.Item):
    """One case and phase."""

    def __init__(self, *, gate: Gate, series: tuple[str, str], **rest: Any) -> None:
        super().__init__(**rest)
        self._gate = gate
        self._series = series
        # A measurement has the plan's deadlines; pytest-timeout's are for tests that compute.
        if self.config.pluginmanager.hasplugin("timeout"):
            self.add_marker(pytest.mark.timeout(0))

    def runtest(self) -> None:
        """Pass, or raise `GateFailure` with the verdict's sentence."""
        found = self._gate.verdict(self._series)
        self.user_properties.append(("epwatch_verdict", found.verdict))
        if found.verdict in PASSES:
            return
        if found.verdict in PASSES_UNLESS_STRICT and not self._gate.setup.strict:
            self.user_properties.append(("epwatch_note", found.sentence))
            return
        if found.waiver:
            pytest.xfail(found.sentence)
        raise GateFailure(found.sentence)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The verdict's sentence and nothing else; anything unexpected with its trace."""
        if isinstance(excinfo.value, GateFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """How the test is called in pytest's output."""
        return self.config.rootpath, None, f"{self._series[1]} of {self._series[0]}"
