"""One look at a machine: all questions of a run's operations are sent in one command, and answered in parallel.

An operation defined with `operation` asks with `ask`. When a task calls it, its first question is recorded; when the first of
a machine's operations is executed, all recorded questions are sent at once. So a run that changes nothing needs two commands,
this one and that of operations/machine.py, for any number of roles. As soon as a run changes something on any machine, the
answers are not used any more, and every later question is sent by itself.
"""

from collections.abc import Callable, Generator, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

from pyinfra.api import operation as pyinfra_operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.context import ctx_state, state
from pyinfra.context import host as current_host

from operations.shell import Fact, quoted, shell_file

P = ParamSpec("P")
T = TypeVar("T")


class Question(NamedTuple):
    """fact: its class; shell: the command that answers it; unit: the systemd unit that it asks about, or "".

    paths: what it asks about, if the fact is `about_paths`. reads: the files that the unit reads.
    """

    fact: type[Fact[Any]]
    shell: str
    unit: str = ""
    paths: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


class Operation(Protocol):
    """What pyinfra makes of a function. _inner: the function itself."""

    _inner: Callable[..., Generator[PyinfraCommand, None, None]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class _Recorded(BaseException):
    """Ends an operation that is run only to record its first question."""


class _Look:
    """The questions and answers of one machine."""

    def __init__(self) -> None:
        self.recorded: dict[Question, None] = {}
        self.answers: dict[Question, Any] | None = None


class _Run:
    """One run: the questions and answers of each machine, and whether something was changed already."""

    def __init__(self) -> None:
        self.looks: dict[str, _Look] = {}
        self.touched = False


_runs: WeakKeyDictionary[State, _Run] = WeakKeyDictionary()
_recording = False


def _this_run() -> _Run:
    return _runs.setdefault(ctx_state.get(), _Run())  # type: ignore[no-untyped-call]


class Answers(Fact[dict[int, list[str]]]):
    """The answers to several questions, which are run in parallel: number of the question -> lines."""

    def question(self, questions: Sequence[Question]) -> str:
        functions = dict.fromkeys(each.fact.functions for each in questions if each.fact.functions)
        units = [each.unit for each in questions if each.unit]
        reads = dict.fromkeys(path for each in questions for path in each.reads)
        asked = [
            f'{{ {each.shell}\n}} </dev/null >"$answers/{number}" 2>/dev/null &'
            for number, each in enumerate(questions)
        ]
        return "\n".join(
            [
                'answers=$(mktemp -d -p /run) && trap \'rm -rf "$answers"\' EXIT && chmod 700 "$answers" || exit 1',
                *map(shell_file, functions),
                # systemd is asked once for all of them (operations/sh/unit.sh).
                f"show_all {quoted(*units)}\nstat_all {quoted(*reads)}" if units else "",
                *asked,
                "wait",
                # A line each, behind the number of its question.
                'cd "$answers" && grep -aH "" -- * || true',
            ]
        )

    @staticmethod
    def default() -> dict[int, list[str]]:
        return {}

    def answer(self, lines: list[str]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for line in lines:
            number, _, rest = line.partition(":")
            found.setdefault(int(number), []).append(rest)
        return found


def ask(fact: type[Fact[T]], *, host: Host | None = None, **arguments: Any) -> T:
    """The answer of a machine, the current one unless another is given; to be called by operations only."""
    host = host or current_host
    paths = tuple(arguments["paths"]) if fact.about_paths else ()
    unit, reads = str(arguments.get("unit", "")), tuple(arguments.get("reads", ()))
    question = Question(fact, fact().question(**arguments), unit, paths, reads)
    run = _this_run()
    look = run.looks.setdefault(host.name, _Look())
    if _recording:
        look.recorded[question] = None
        raise _Recorded
    if state.is_executing and not run.touched:
        if look.answers is None:
            look.answers = _ask_all(host, list(look.recorded))
        if question in look.answers:
            known: T = look.answers[question]
            return known
    answer: T = host.get_fact(fact, **arguments)
    return answer


def looked(host: Host, fact: type[Fact[T]]) -> T | None:
    """What a machine has answered to a question of this kind in the look; None if it was not asked."""
    answers = _this_run().looks.setdefault(host.name, _Look()).answers or {}
    found: list[T] = [answer for question, answer in answers.items() if question.fact is fact]
    return found[0] if found else None


def look_at(host: Host, **arguments: Any) -> None:
    """Ask all recorded questions of a machine, before its first operation. arguments: pyinfra's, such as _sudo."""
    look = _this_run().looks.setdefault(host.name, _Look())
    look.answers = _ask_all(host, list(look.recorded), **arguments)


def _ask_all(host: Host, questions: list[Question], **arguments: Any) -> dict[Question, Any]:
    about = joined(questions)
    asked = list(dict.fromkeys(about.values()))
    lines = host.get_fact(Answers, questions=asked, **arguments)
    answers = {
        question: question.fact().answer(lines[number]) if number in lines else question.fact.default()
        for number, question in enumerate(asked)
    }
    return {question: _own(question, answers[other]) for question, other in about.items()}


def joined(questions: Sequence[Question]) -> dict[Question, Question]:
    """What is asked for each question: the same for all that are about paths, instead of some processes for each of them."""
    paths: dict[type[Fact[Any]], dict[str, None]] = {}
    for question in questions:
        if question.fact.about_paths:
            paths.setdefault(question.fact, {}).update(dict.fromkeys(question.paths))
    whole = {
        fact: Question(fact, fact().question(paths=tuple(every)), paths=tuple(every)) for fact, every in paths.items()
    }
    return {question: whole.get(question.fact, question) for question in questions}


def _own(question: Question, answer: Any) -> Any:
    """The part of an answer that this question is about."""
    if not question.fact.about_paths:
        return answer
    return {path: answer[path] for path in question.paths if path in answer}


def operation() -> Callable[[Callable[P, Generator[PyinfraCommand, None, None]]], Operation]:
    """pyinfra's decorator, for operations that `ask`."""

    def decorate(function: Callable[P, Generator[PyinfraCommand, None, None]]) -> Operation:
        @wraps(function)
        def marking_changes(*args: P.args, **kwargs: P.kwargs) -> Generator[PyinfraCommand, None, None]:
            for command in function(*args, **kwargs):
                if state.is_executing:
                    _this_run().touched = True
                yield command

        wrapped = pyinfra_operation()(marking_changes)

        @wraps(wrapped)
        def recording_question(*args: Any, **kwargs: Any) -> Any:
            own = {name: value for name, value in kwargs.items() if not _is_pyinfra_argument(name)}
            _record_question(function, args, own)
            return wrapped(*args, **kwargs)

        result = cast(Operation, recording_question)
        result._inner = function
        return result

    return decorate


def _is_pyinfra_argument(argument: str) -> bool:
    return argument == "name" or argument.startswith("_")


def _record_question(function: Callable[..., Generator[Any, None, None]], args: Any, kwargs: Any) -> None:
    """Record the first question of an operation. An error here is ignored: it occurs again when the operation is executed."""
    global _recording
    _recording = True
    try:
        next(function(*args, **kwargs), None)
    except _Recorded:
        pass
    except Exception:  # noqa: S110
        pass
    finally:
        _recording = False
