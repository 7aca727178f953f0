"""One look at a machine: what a run has to know of it is asked in one command, side by side, and served from there.

An operation that is made by `operation` asks with `ask`. When a task calls it, its first question is noted; when the first of
a machine's operations is executed, all that was noted is asked at once. So a run that changes nothing needs two commands, this
one and the question what the machine is, however many roles there are. As soon as a run changes something on any machine,
every later question is asked anew.
"""

from collections.abc import Callable, Generator, Iterable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

from pyinfra.api import operation as pyinfra_operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.context import ctx_state, state
from pyinfra.context import host as current_host

from operations.shell import Fact

P = ParamSpec("P")
T = TypeVar("T")


class Question(NamedTuple):
    """fact: what is asked; shell: how."""

    fact: type[Fact[Any]]
    shell: str


class Operation(Protocol):
    """What pyinfra makes of a function. _inner: the function itself."""

    _inner: Callable[..., Generator[PyinfraCommand, None, None]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class _Noted(BaseException):
    """Ends an operation that is run only for its first question."""


class _Look:
    """What is known of one machine."""

    def __init__(self) -> None:
        self.noted: dict[Question, None] = {}
        self.answers: dict[Question, Any] | None = None


class _Run:
    """What is known in one run: of each machine, and whether something was changed already."""

    def __init__(self) -> None:
        self.looks: dict[str, _Look] = {}
        self.touched = False


_runs: WeakKeyDictionary[State, _Run] = WeakKeyDictionary()
_noting = False


def _this_run() -> _Run:
    return _runs.setdefault(ctx_state.get(), _Run())  # type: ignore[no-untyped-call]


class Answers(Fact[dict[int, list[str]]]):
    """The answers to several questions, which are asked side by side: number of the question -> lines."""

    def question(self, questions: Iterable[str]) -> str:
        asked = [
            f'{{ {question}\n}} </dev/null >"$answers/{number}" 2>/dev/null &'
            for number, question in enumerate(questions)
        ]
        return "\n".join(
            [
                'answers=$(mktemp -d -p /run) && trap \'rm -rf "$answers"\' EXIT && chmod 700 "$answers" || exit 1',
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
    """What is to be known of a machine, the current one unless another is given; to be called by operations only."""
    host = host or current_host
    run, question = _this_run(), Question(fact, fact().question(**arguments))
    look = run.looks.setdefault(host.name, _Look())
    if _noting:
        look.noted[question] = None
        raise _Noted
    if state.is_executing and not run.touched:
        if look.answers is None:
            look.answers = _asked(host, list(look.noted))
        if question in look.answers:
            known: T = look.answers[question]
            return known
    answer: T = host.get_fact(fact, **arguments)
    return answer


def _asked(host: Host, questions: list[Question]) -> dict[Question, Any]:
    answers = host.get_fact(Answers, questions=[question.shell for question in questions])
    return {
        question: question.fact().answer(answers[number]) if number in answers else question.fact.default()
        for number, question in enumerate(questions)
    }


def operation() -> Callable[[Callable[P, Generator[PyinfraCommand, None, None]]], Operation]:
    """pyinfra's decorator, for operations that `ask`."""

    def decorate(function: Callable[P, Generator[PyinfraCommand, None, None]]) -> Operation:
        @wraps(function)
        def watched(*args: P.args, **kwargs: P.kwargs) -> Generator[PyinfraCommand, None, None]:
            for command in function(*args, **kwargs):
                if state.is_executing:
                    _this_run().touched = True
                yield command

        called = pyinfra_operation()(watched)

        @wraps(called)
        def noted(*args: Any, **kwargs: Any) -> Any:
            _note(function, args, {name: value for name, value in kwargs.items() if not _is_pyinfras(name)})
            return called(*args, **kwargs)

        made = cast(Operation, noted)
        made._inner = function
        return made

    return decorate


def _is_pyinfras(argument: str) -> bool:
    return argument == "name" or argument.startswith("_")


def _note(function: Callable[..., Generator[Any, None, None]], args: Any, kwargs: Any) -> None:
    """Note the first question of an operation. What goes wrong here will go wrong again when the operation is executed."""
    global _noting
    _noting = True
    try:
        next(function(*args, **kwargs), None)
    except _Noted:
        pass
    except Exception:  # noqa: S110
        pass
    finally:
        _noting = False
