"""An environment whose tools are Python functions: their names, type hints and docstrings say what the agent is told.

`ToolEnvironment` is for a domain of your own, whose tools are methods marked with `@tool`, and for functions that are
there already, named in `functions`. What an environment is stands in `base.py`; examples are in `recipes/library.md`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NotRequired, get_type_hints

from docstring_parser import parse
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from ppp.environments.base import Environment
from ppp.session import ASK_USER, FINISH
from ppp.types import Observation, PPPError, RecipeError, ToolCall, ToolSpec

RESERVED = (ASK_USER.name, FINISH.name)


class Tool:
    """One Python function as a tool.

    Args:
        function: has a docstring, and a type hint for every parameter; sync or async. Sync ones run in a thread.
        is_method: its first parameter is the environment.

    Raises:
        RecipeError: nothing says what the tool does or what it takes.
    """

    def __init__(self, function: Callable[..., Any], *, is_method: bool = False) -> None:
        self.function, self.name = function, function.__name__
        self.is_async = inspect.iscoroutinefunction(function)
        parameters = list(inspect.signature(function).parameters.values())[1 if is_method else 0 :]
        self._adapter = self._adapter_of(parameters)
        self.spec = self._describe(parameters)

    def __get__(self, instance: object, owner: type) -> Any:
        """The method itself, so that other methods can call it."""
        return self if instance is None else self.function.__get__(instance, owner)

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call as the type hints want them: dates, enumerations, models and so on.

        Raises:
            pydantic.ValidationError: they do not fit.
        """
        return dict(self._adapter.validate_python(dict(arguments)))

    async def call(self, arguments: Mapping[str, Any], *instance: object) -> Any:
        """What the function returns for arguments that were `read`."""
        if self.is_async:
            return await self.function(*instance, **arguments)
        return await asyncio.to_thread(self.function, *instance, **arguments)

    def _adapter_of(self, parameters: list[inspect.Parameter]) -> TypeAdapter[Any]:
        try:
            hints = get_type_hints(self.function, include_extras=True)
        except NameError as error:
            raise RecipeError(f"tool {self.name!r}: its type hints cannot be read ({error})") from error
        types: dict[str, Any] = {}
        for parameter in parameters:
            name = parameter.name
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise RecipeError(f"tool {self.name!r}: the parameter {name!r} cannot be given by its name")
            if name not in hints:
                raise RecipeError(f"tool {self.name!r}: the parameter {name!r} has no type hint")
            types[name] = hints[name] if parameter.default is parameter.empty else NotRequired[hints[name]]
        arguments = TypedDict("arguments", types)  # type: ignore[misc]
        return TypeAdapter(with_config(ConfigDict(extra="forbid"))(arguments))

    def _describe(self, parameters: list[inspect.Parameter]) -> ToolSpec:
        docstring = parse(inspect.getdoc(self.function) or "")
        if not docstring.description:
            raise RecipeError(f"tool {self.name!r}: its docstring has to say what it does, for the agent")
        schema = without_titles(self._adapter.json_schema())
        told = {entry.arg_name: entry.description for entry in docstring.params}
        properties = schema.setdefault("properties", {})
        for parameter in parameters:
            entry = properties[parameter.name]
            if told.get(parameter.name):
                entry.setdefault("description", " ".join(str(told[parameter.name]).split()))
            if isinstance(parameter.default, str | int | float | bool):
                entry.setdefault("default", parameter.default)
        return ToolSpec(self.name, " ".join(docstring.description.split()), schema)


def tool(method: Callable[..., Any]) -> Tool:
    """Mark a method of a `ToolEnvironment` as a tool."""
    return Tool(method, is_method=True)


def tool_spec(function: Callable[..., Any]) -> ToolSpec:
    """What an agent is told of a plain function, for environments that call it themselves.

    Raises:
        RecipeError: nothing says what it does or what it takes.
    """
    return Tool(function).spec


def without_titles(schema: Any) -> Any:
    """A JSON schema without the titles that pydantic makes of names, which tell an agent nothing."""
    if isinstance(schema, list):
        return [without_titles(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: without_titles(entry) for name, entry in value.items()}
        if key in ("properties", "$defs")
        else without_titles(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


class ToolEnvironment(Environment):
    """An environment that carries out its steps by calling Python functions. What is left to write is `score`.

    Tools are the methods marked with `@tool`, in the order in which they stand, and then `functions`. What one returns
    is what the agent reads: a text as it is, an `Observation`, anything else as JSON.

    Attributes:
        functions: functions that are no methods, and so know nothing of the session.
        mistakes: exceptions of tools that are the agent's own mistakes: it reads them, and may do better. All others
            are failures of ours, which take the session out of the batch; an agent would otherwise be trained on our
            outages.
    """

    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    mistakes: ClassVar[tuple[type[Exception], ...]] = ()
    tools: ClassVar[tuple[ToolSpec, ...]] = ()
    _methods: ClassVar[dict[str, Tool]] = {}
    _functions: ClassVar[dict[str, Tool]] = {}

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        found = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        cls._methods = {value.name: value for value in found.values() if isinstance(value, Tool)}
        cls._functions = {function.__name__: Tool(function) for function in cls.functions}
        names = [*cls._methods, *(function.__name__ for function in cls.functions)]
        for name in names:
            if name in RESERVED or names.count(name) > 1:
                raise RecipeError(f"{cls.__name__}: there is a tool {name!r} already; choose another name")
        cls.tools = tuple(entry.spec for entry in (*cls._methods.values(), *cls._functions.values()))

    async def step(self, call: ToolCall) -> Observation:
        is_method = call.name in self._methods
        entry = self._methods[call.name] if is_method else self._functions[call.name]
        try:
            arguments = entry.read(call.arguments)
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, line['loc']))}: {line['msg']}" for line in error.errors())
            return Observation(f"{call.name}: {'; '.join(problems)}", is_error=True)
        try:
            result = await entry.call(arguments, *([self] if is_method else []))
        except PPPError:
            raise
        except self.mistakes as error:
            return Observation(f"{type(error).__name__}: {error}", is_error=True)
        return result if isinstance(result, Observation) else Observation(as_text(result))


def as_text(result: object) -> str:
    """What a function returned, as an agent reads it."""
    if result is None:
        return "Done."
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
