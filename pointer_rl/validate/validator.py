"""Validating a file: the schema, then what a schema cannot say, record by record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pointer_rl_schemas
from pointer_rl.errors import InputError, PointerRLError
from pointer_rl.json_stream import Flaw, Member
from pointer_rl.records.formats import read_meta, stream_members
from pointer_rl.records.layouts import LAYOUTS, Layout, detect_layout
from pointer_rl.records.shards import Shard, window_of
from pointer_rl.registry import registry
from pointer_rl.types import Metric
from pointer_rl.validate import rules
from pointer_rl.validate.report import Finding, Report, Unchecked, json_pointer
from pointer_rl.validate.schema import Fault, SchemaChecker

__all__ = ["ValidationConfig", "validate_file"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """How to validate."""

    pool_size: int | None = None
    """Rows that the pool has; None: what `_meta.dataset.pool_size` says."""
    recompute: bool = True
    """Whether to judge the recorded answers again, with the metric that `_meta` names."""
    max_findings: int = 100
    """Findings that are kept of a file; the others are counted."""

    def __post_init__(self) -> None:
        if self.pool_size is not None and self.pool_size < 1:
            raise InputError(f"a pool size of {self.pool_size}: a pool has at least one row")
        if self.max_findings < 0:
            raise InputError(f"at most {self.max_findings} findings: give 0 or more")


def validate_file(path: Path, config: ValidationConfig | None = None) -> Report:
    """Check a `.json` or `.jsonl` file of RL data, in the memory of its largest record.

    Raises InputError for what cannot be parsed at all; all else is in the report.
    """
    run = _Run(path, config or ValidationConfig())
    for member in stream_members(path):
        run.member(member)
    return run.finish()


class _Run:
    """One file's validation under way."""

    def __init__(self, path: Path, config: ValidationConfig) -> None:
        self.report = Report(path)
        self._config = config
        self._record = SchemaChecker("pointer_candidates", "record")
        self._meta = SchemaChecker("pointer_candidates", "meta")
        self._beams = SchemaChecker("beams", "record")
        meta = read_meta(path)
        provenance = _Provenance(meta, self._meta.faults(meta or {}))
        self._provenance = provenance
        self._rules = self._choose_rules(provenance)
        self._seen: set[str] = set()
        self._layouts: Counter[Layout] = Counter()
        self._first: dict[Layout, Member] = {}

    # --- members ---

    def member(self, member: Member) -> None:
        if member.key in self._seen:
            self._add(member, _duplicate_key((), member.key))
        self._seen.add(member.key)
        for flaw in member.flaws:
            self._add(member, _flaw(flaw))
        if member.key == "_meta":
            self._faults(member, self._meta.faults(member.value))
        elif not member.key:
            self._add(member, Fault("query-id", (), "an empty query id", "give the query an id"))
        elif not member.key.startswith("_"):
            self._query(member)

    def _query(self, member: Member) -> None:
        self.report.queries += 1
        layout = detect_layout(member.value)
        self._layouts[layout] += 1
        self._first.setdefault(layout, member)
        if layout == "beam":
            return
        if layout == "beams":
            self._faults(member, self._beams.faults(member.value))
            beams = member.value["beams"]
            self.report.candidates["beam"] += len(beams) if isinstance(beams, list) else 0
            return
        self._count(member.value)
        faults = self._record.faults(member.value)
        if faults:
            self._faults(member, faults)
        group = _sound(member, faults)
        if group is None:
            return
        for rule in self._rules:
            if layout == "k64" and isinstance(rule, _ROW_RULES):
                continue
            for path, message in rule.check(group):
                self._add(member, Fault(rule.id, path, message, rule.fix))

    def _count(self, record: Any) -> None:
        candidates = record.get("pointer_candidates") if isinstance(record, dict) else None
        if isinstance(candidates, list):
            objects = [each for each in candidates if isinstance(each, dict)]
            self.report.candidates.update([str(each.get("gen_method")) for each in objects])
            self.report.failed += len([each for each in objects if each.get("eval_failed") is True])

    def _faults(self, member: Member, faults: Iterable[Fault]) -> None:
        known = {flaw.path for flaw in member.flaws if flaw.kind == "not-finite"}
        for fault in faults:
            if fault.path not in known:  # NaN is no number either: said once
                self._add(member, fault)

    def _add(self, member: Member, fault: Fault) -> None:
        self.report.num_findings += 1
        if len(self.report.findings) < self._config.max_findings:
            pointer = json_pointer((member.key, *fault.path))
            self.report.findings.append(
                Finding(fault.rule, pointer, fault.message, fault.fix, member.line)
            )

    # --- the end ---

    def finish(self) -> Report:
        report = self.report
        for layout, count in self._layouts.items():
            if layout == "v4":
                report.notes.append(f"{count} queries in an older layout: {LAYOUTS[layout]}")
            elif layout == "beams" and len(self._layouts) == 1:
                report.notes.append("beam data: its form is checked, not its rows")
            elif layout != "pointer_candidates":
                message = f"{LAYOUTS[layout]} ({count} of {report.queries} queries)"
                self._add(self._first[layout], Fault("layout", (), message, _LAYOUT_FIX[layout]))
        if not report.queries:
            nowhere = Finding("empty", "", "no query in this file", "generate the data again", 1)
            report.num_findings += 1
            report.findings += [nowhere][: self._config.max_findings - len(report.findings)]
        expected = self._provenance.num_queries
        if expected is not None and expected > report.queries:
            report.notes.append(f"{report.queries} of {expected} queries: the run was ended early")
        if self._provenance.is_newer:
            report.notes.append(
                f"of schema version {self._provenance.version}: what was added since "
                f"{self._provenance.OURS} is not checked"
            )
        if self._layouts["k64"]:
            report.unchecked += [
                Unchecked(rule.id, "`pointer` holds positions, in the layout k64")
                for rule in self._rules
                if isinstance(rule, _ROW_RULES)
            ]
        report.unchecked += [
            Unchecked(rule.id, f"{rule.skipped} of {report.queries} queries have no {rule.needs}")
            for rule in self._rules
            if rule.skipped
        ]
        return report

    # --- which rules can be checked ---

    def _choose_rules(self, meta: _Provenance) -> list[rules.Rule]:
        chosen: list[rules.Rule] = [
            rules.QueryId(),
            rules.RowInQueryPool(),
            rules.DuplicateCandidate(ordered=meta.dedup != "unordered"),
            rules.CorrectAccuracy(meta.names_metric),
        ]
        pool_size = self._config.pool_size or meta.pool_size
        if pool_size is not None and meta.pool_size not in (pool_size, None):
            self.report.notes.append(
                f"rows are checked against the pool size given, {pool_size}; _meta.dataset says "
                f"{meta.pool_size}"
            )
        if pool_size is None:
            self._skip(rules.RowInRange, "no pool size: give --pool-size")
        else:
            chosen.append(rules.RowInRange(pool_size))
        if meta.shared_pool is None:
            self._skip(rules.OwnDemonstration, "_meta.dataset.shared_pool is not given")
        elif meta.shared_pool:
            chosen.append(rules.OwnDemonstration())
        if meta.shots is None:
            self._skip(rules.Shots, "_meta.shots is not given")
        else:
            chosen.append(rules.Shots(meta.shots))
        metric = self._metric(meta)
        if metric is not None:
            chosen.append(rules.Accuracy(metric))
        return chosen

    def _metric(self, meta: _Provenance) -> Metric | None:
        name, version = meta.metric_name, meta.metric_version
        if not self._config.recompute:
            reason = "switched off (--no-recompute)"
        elif name is None:
            reason = "_meta.metric is not given"
        else:
            try:
                metric: Metric = registry().create("metric", name, meta.metric_options)
            except PointerRLError as error:
                reason = str(error)
            else:
                if metric.version == version:
                    return metric
                reason = f"recorded with {name} {version}, installed is {name} {metric.version}"
        self._skip(rules.Accuracy, reason)
        return None

    def _skip(self, rule: type[rules.Rule], reason: str) -> None:
        self.report.unchecked.append(Unchecked(rule.id, reason))


_ROW_RULES = (rules.RowInRange, rules.RowInQueryPool, rules.OwnDemonstration)
_LAYOUT_FIX: dict[Layout, str] = {
    "beam": "generate RL data from it, or upgrade it with `pointer-rl convert`",
    "beams": "keep RL data and beam data in files of their own",
    "k64": "upgrade the file with `pointer-rl convert`",
}


def _sound(member: Member, faults: list[Fault]) -> rules.Group | None:
    """The record without its faulty parts; None where its candidates themselves cannot be told."""
    faulty: set[str | int] = set()
    for fault in faults:
        match fault.path:
            case ("pointer_candidates", int() as part, *_) | ("query" | "pool" as part, *_):
                faulty.add(part)
            case _:
                return None
    record: Mapping[str, Any] = member.value
    candidates = list(enumerate(record["pointer_candidates"]))
    return rules.Group(
        member.key,
        [each for each in candidates if each[0] not in faulty] if faulty else candidates,
        query=record.get("query", {}) if "query" not in faulty else {},
        pool=record.get("pool") if "pool" not in faulty else None,
    )


def _flaw(flaw: Flaw) -> Fault:
    if flaw.kind == "duplicate-key":
        return _duplicate_key(flaw.path, flaw.path[-1])
    return Fault(
        "not-finite",
        flaw.path,
        "NaN or Infinity, which JSON does not have",
        "write null, or leave the field out",
    )


def _duplicate_key(path: tuple[str | int, ...], key: str | int) -> Fault:
    return Fault(
        "duplicate-key",
        path,
        f"the key {key!r} stands twice; most programs read the last one and lose the other",
        "keep one of them",
    )


class _Provenance:
    """What the rules need of `_meta`; None for what it does not say, or says wrongly."""

    OURS = pointer_rl_schemas.version("pointer_candidates")

    def __init__(self, meta: Mapping[str, Any] | None, faults: Iterable[Fault]) -> None:
        faulty = {part for fault in faults for part in fault.path[:1]}
        ours = meta is not None and "schema_version" in meta.keys() - faulty
        self._meta = {k: v for k, v in meta.items() if k not in faulty} if meta and ours else {}
        self.names_metric = meta is not None and "metric" in meta
        self.version = str(self._get("schema_version"))
        self.num_queries = self._num_queries()
        self.pool_size: int | None = self._get("dataset", "pool_size")
        self.shared_pool: bool | None = self._get("dataset", "shared_pool")
        self.metric_name: str | None = self._get("metric", "name")
        self.metric_version: str | None = self._get("metric", "version")
        self.metric_options: dict[str, Any] | None = self._get("metric", "options")
        self.shots: int | None = self._get("shots")
        self.dedup: str | None = self._get("dedup")

    @property
    def is_newer(self) -> bool:
        """Whether the file follows a later minor version of the schema than ours."""
        _, _, minor = self.version.partition(".")
        return bool(minor) and int(minor) > int(self.OURS.partition(".")[2])

    def _num_queries(self) -> int | None:
        """How many the file has, where its run was not ended early."""
        queries: int | None = self._get("dataset", "num_queries")
        shard = Shard.of(self._meta)
        if queries is None or shard is None:
            return queries
        return shard.size(queries, window_of(self._meta))

    def _get(self, *keys: str) -> Any:
        value: Any = self._meta
        for key in keys:
            value = value.get(key, {})
        return None if value == {} else value
