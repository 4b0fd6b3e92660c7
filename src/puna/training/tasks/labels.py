"""Columns and labels of classifications: `LabelColumns` finds the columns of a row, `Labels` reads their values.

Forms of a label: a name, a whole number or a truth value (one label per text); a list of names, or names joined by "|",
";" or "," (several labels per text); a number or a list of numbers (a regression). The setting `labels` names classes
that have only numbers in the data.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from puna.errors import ConfigError, DataError, show, show_count, suggestion
from puna.training.batch import Label, Source
from puna.training.data.label_columns import LABEL, TEXT, columns_by_values, likely_columns
from puna.training.data.readers.rows import Row
from puna.training.metrics import Problem
from puna.training.settings import TrainingSettings

PROBLEMS: dict[str, Problem] = {
    "single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression",
}  # fmt: skip
"""The values of the setting `problem`, and their names in a configuration."""

_SEPARATORS = "|;,"
_SHOWN = 10
"""Maximum number of names in an error."""

_MIN_DISTINCT = 20
"""Number of rows from which different labels in all of them are taken for a mistake."""


@dataclass(frozen=True)
class LabelColumns:
    """The columns of a labelled data set.

    Attributes:
        text: the column with the text.
        labels: the column with the label; several columns have 0 or 1 for one class each.
    """

    text: str
    labels: tuple[str, ...]

    @classmethod
    def of(
        cls,
        row: Row,
        sample: Callable[[], Sequence[Row]],
        columns: Mapping[str, str] | None,
        names: Sequence[str] | None,
    ) -> LabelColumns:
        """Returns the columns of a data set, by their names, or else by the values of some rows.

        Args:
            row: the first row.
            sample: returns other rows; called if the names do not tell the columns.
            columns: the setting: the user's names for "text" and "label".
            names: the labels; if each is a column, these columns have the labels.

        Raises:
            DataError: the columns cannot be told; or a column of `columns` does not exist.
        """
        present, chosen = list(row.values), dict(columns or {})
        for key, name in chosen.items():
            if key not in ("text", "label"):
                raise DataError(f"columns names {show(key)}; a classification has the columns text and label")
            if name not in present:
                raise DataError(
                    f"{row.source}: there is no column {show(name)}{_columns(name, present, 'setting columns')}"
                )
        text, label = (chosen.get(key) or _first(known, present) for key, known in (("text", TEXT), ("label", LABEL)))
        if names is not None and "label" not in chosen and all(name in present for name in names):
            labels: tuple[str, ...] = tuple(names)
            return cls(text or _other(row, sample, "text", labels), labels)
        if (text is None or label is None) and len(present) > 1 + ((text or label) is not None):
            text, label = columns_by_values([item.values for item in (row, *sample())], text, label)
        if text is None and label is None and len(present) != 1:
            raise _unclear(row, sample, "text", "label")
        text = text or _other(row, sample, "text", () if label is None else (label,))
        return cls(text, (label or _other(row, sample, "label", (text,)),))

    @property
    def name(self) -> str:
        """The name of the label, for messages."""
        return self.labels[0] if len(self.labels) == 1 else "label"

    def value(self, row: Row) -> Any:
        """Returns the label of a row in the form of the data; several columns as the list of the names with 1.

        Raises:
            DataError: the row lacks the column.
        """
        if len(self.labels) == 1:
            return self._get(row, self.labels[0])
        return [name for name in self.labels if _is_set(self._get(row, name), name, row.source)]

    def text_of(self, row: Row) -> str:
        """Returns the text of a row; raises DataError if it is not a text."""
        text = self._get(row, self.text)
        if not isinstance(text, str):
            raise DataError(f"{row.source}: {show(self.text)} is {show(text)}; it must be a text")
        return text

    def _get(self, row: Row, name: str) -> Any:
        if name not in row.values:
            raise DataError(f"{row.source}: the row has no {show(name)}{_columns(name, list(row.values), 'row')}")
        return row.values[name]


def _first(known: Sequence[str], present: Sequence[str]) -> str | None:
    """Returns the column with the most usual name, whatever its case."""
    columns = {name.strip().casefold(): name for name in reversed(present)}
    return next((columns[name] for name in known if name in columns), None)


def _other(row: Row, sample: Callable[[], Sequence[Row]], kind: str, used: Sequence[str]) -> str:
    """Returns the only column that is not used."""
    rest = [name for name in row.values if name not in used]
    if len(rest) == 1:
        return rest[0]
    raise _unclear(row, sample, kind, used=used)


def _unclear(row: Row, sample: Callable[[], Sequence[Row]], *kinds: str, used: Sequence[str] = ()) -> DataError:
    """Returns the error for columns that cannot be told, with an example of the option that names them."""
    rows = [{name: value for name, value in item.values.items() if name not in used} for item in (row, *sample())]
    text, label = likely_columns(rows, has_text="text" in kinds)
    example = {"text": text, "label": label}
    which, name = ("which has", "Name it") if len(kinds) == 1 else ("which have", "Name them")
    return DataError(
        f"{row.source}: the columns are {', '.join(map(show, row.values))}; {which} the {' and the '.join(kinds)}? "
        f"{name}, for example {_option(**{kind: example[kind] for kind in kinds})}"
    )


def _option(**columns: str) -> str:
    """Returns the option of the command line and the setting that name columns."""
    setting = ", ".join(f"{key} = {json.dumps(name, ensure_ascii=False)}" for key, name in columns.items())
    flags = " ".join(shlex.join(["--columns", f"{key}={name}"]) for key, name in columns.items())
    return f"columns = {{{setting}}}, on the command line {flags}"


def _columns(name: str, present: Sequence[str], wrong: str) -> str:
    shown = ", ".join(map(show, present[:_SHOWN]))
    return f"; the columns are {shown}; correct the {wrong}{suggestion(name, present)}"


def _is_set(value: Any, name: str, source: Source) -> bool:
    if value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip() in ("0", "1"):
        return value.strip() == "1"
    raise DataError(f"{source}: {show(name)} is {show(value)}; the column of a class must be 0 or 1")


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        problem: the kind of classification, as in a configuration.
        names: the names of the classes, in the order of their ids; of a regression, the names of its numbers.
    """

    problem: Problem
    names: tuple[str, ...]

    @classmethod
    def infer(cls, values: Iterable[tuple[Any, Source]], settings: TrainingSettings, column: str) -> Labels:
        """Returns the labels of a data set from the values of its rows and the settings `problem` and `labels`.

        Args:
            column: name of the column, for messages and the number of a regression.

        Raises:
            ConfigError: a setting contradicts the data.
            DataError: a value is missing or has another form; or there are too few or too many labels.
        """
        entries = list(values)
        problem = PROBLEMS[settings.problem] if settings.problem != "auto" else _guess(value for value, _ in entries)
        if problem == "regression":
            return cls(problem, _regression_names(entries, settings, column))
        if settings.labels is not None:
            if len(settings.labels) < 2 and problem == "single_label_classification":
                raise ConfigError(f"labels is {show(settings.labels)}; a classification needs at least two")
            if len(set(settings.labels)) < len(settings.labels):
                raise ConfigError(f"labels is {show(settings.labels)}; each name may occur once")
            return cls(problem, settings.labels)
        several = problem == "multi_label_classification"
        found: dict[str, Source] = {}
        for value, source in entries:
            with suppress(*[DataError] if settings.bad_rows == "skip" else []):
                for name in (_names if several else _name)(value, source):
                    found.setdefault(name, source)
        names = _sorted(_without_missing(found, settings.bad_rows))
        if not several and len(names) == len(entries) >= _MIN_DISTINCT:
            raise DataError(
                f"all {len(names)} rows have different values in {show(column)}; choose the column with the label "
                "(columns), or for numbers the problem regression"
            )
        if len(names) < (1 if several else 2):
            raise DataError(_too_few(names, entries, column))
        return cls(problem, names)

    def target(self, value: Any, source: Source) -> Label:
        """Returns a label for `Example`: a class index, one number per class, or the number(s) of a regression.

        Raises:
            DataError: the value has another form, or is not one of the labels.
        """
        if self.problem == "regression":
            numbers = _numbers(value, source)
            if len(numbers) != len(self.names):
                raise DataError(
                    f"{source}: the label has {show_count(len(numbers), 'number')}; other rows have {len(self.names)}"
                )
            return numbers[0] if len(numbers) == 1 else numbers
        if self.problem == "multi_label_classification":
            indices = {self._index(name, source) for name in _names(value, source)}
            return tuple(float(index in indices) for index in range(len(self.names)))
        return self._index(_name(value, source)[0], source)

    def _index(self, name: str, source: Source) -> int:
        if name in self.names:
            return self.names.index(name)
        if name.isdecimal() and int(name) < len(self.names):  # the number of a class whose name is in the settings
            return int(name)
        shown = ", ".join(map(show, self.names[:_SHOWN])) + (", ..." if len(self.names) > _SHOWN else "")
        raise DataError(
            f"{source}: the label is {show(name)}; the labels are {shown}. Correct the row, or name all labels with "
            f"the setting labels{suggestion(name, self.names)}"
        )


def _too_few(names: Sequence[str], entries: Sequence[tuple[Any, Source]], column: str) -> str:
    """Returns the message for rows with one label or none."""
    file = f"{entries[0][1].file}: " if entries else ""
    found = f"all rows have the label {show(names[0])}" if names else "no row has a label"
    return (
        f"{file}{found} in the column {show(column)}; a classifier needs two labels or more: add rows with other "
        'labels, or name another column, for example columns = {label = "kind"}'
    )


def _guess(values: Iterable[Any]) -> Problem:
    """Returns the problem that the forms of the labels suggest.

    Numbers, some of them with a fraction, are those of a regression, also if some are missing or not finite: these are
    errors of their rows, which would otherwise make all numbers names of classes.
    """
    numbers = []
    for value in values:
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if isinstance(value, list | tuple) or (isinstance(value, str) and value.lstrip().startswith("[")):
            return "multi_label_classification"
        numbers.append(_any_number(value))
    has_fraction = any(number is not None and math.isfinite(number) and not number.is_integer() for number in numbers)
    return "regression" if has_fraction and None not in numbers else "single_label_classification"


def _any_number(value: Any) -> float | None:
    """Returns the number that a value is or spells, also "nan" and "inf"; None for other values."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _number(value: Any) -> float | None:
    """Returns the finite number that a value is or spells."""
    number = _any_number(value)
    return number if number is not None and math.isfinite(number) else None


def _without_missing(names: Mapping[str, Source], bad_rows: str) -> set[str]:
    """Returns names without "nan" and "inf" if there are others, all numbers, among which they mark missing values.

    Raises:
        DataError: there is such a name, and `bad_rows` is "error".
    """
    numbers = {name: _any_number(name) for name in names}
    missing = [name for name, number in numbers.items() if number is not None and not math.isfinite(number)]
    if None in numbers.values() or len(missing) in (0, len(names)):
        return set(names)
    if bad_rows == "error":
        raise DataError(
            f"{names[missing[0]]}: the label is {show(missing[0])}, but the others are numbers; correct or delete the "
            "row, or name all labels with the setting labels if this is a class"
        )
    return set(names) - set(missing)


def _numbers(value: Any, source: Source) -> tuple[float, ...]:
    items = _decoded(value)
    numbers = tuple(_number(item) for item in (items if isinstance(items, list | tuple) else [items]))
    if not numbers or None in numbers:
        raise DataError(
            f"{source}: the label is {show(value)}; the label of a regression must be a finite number. Correct or "
            "delete the row, or set bad_rows to skip"
        )
    return tuple(number for number in numbers if number is not None)


def _name(value: Any, source: Source) -> tuple[str]:
    """Returns the name of one label; numbers without a fraction are names too."""
    if hasattr(value, "item"):  # a number of NumPy
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool):
        return (str(value).lower(),)
    name = value.strip() if isinstance(value, str) else str(value) if isinstance(value, int) else ""
    if not name:
        raise DataError(
            f"{source}: the label is {show(value)}; it must be a name or a whole number. Add it, or delete the row"
        )
    return (name,)


def _names(value: Any, source: Source) -> tuple[str, ...]:
    """Returns the names of several labels; an empty text or list has none."""
    items = _decoded(value)
    if isinstance(items, str):
        separator = next((mark for mark in _SEPARATORS if mark in items), _SEPARATORS[0])
        items = [part for part in items.split(separator) if part.strip()]
    elif not isinstance(items, list | tuple):
        items = [items]
    return tuple(_name(item, source)[0] for item in items)


def _decoded(value: Any) -> Any:
    """Returns the list that a text contains as JSON, or the value."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value.tolist() if hasattr(value, "tolist") else value


def _sorted(names: set[str]) -> tuple[str, ...]:
    """Returns names in alphabetical order; whole numbers by their value."""
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _regression_names(
    entries: Sequence[tuple[Any, Source]], settings: TrainingSettings, column: str
) -> tuple[str, ...]:
    for value, source in entries:
        with suppress(*[DataError] if settings.bad_rows == "skip" else []):
            count = len(_numbers(value, source))
            break
    else:
        raise DataError(
            f"no row has a finite number in the column {show(column)}; correct the rows, or name another column, for "
            'example columns = {label = "score"}'
        )
    names = settings.labels or ((column,) if count == 1 else tuple(f"{column} {index}" for index in range(count)))
    if len(names) != count:
        raise ConfigError(
            f"labels has {show_count(len(names), 'name')}, but {source} has {show_count(count, 'number')}"
        )
    return names
