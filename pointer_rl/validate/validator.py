"""Validate a file record by record: first the schema, then the rules that it cannot express."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pointer_rl_schemas
from pointer_rl.errors import InputError, PointerRLError
from pointer_rl.json_stream import Flaw, Member
from pointer_rl.records.fields import has_failed
from pointer_rl.records.formats import find_meta, stream_members
from pointer_rl.records.layouts import LAYOUTS, Layout, detect_layout
from pointer_rl.records.shards import Shard, window_of
from pointer_rl.registry import registry
from pointer_rl.types import Metric
from pointer_rl.validate import rules
from pointer_rl.validate.report import Finding, Report, Unchecked, json_pointer
from pointer_rl.validate.schema import Fault, SchemaChecker


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """How to validate."""

    pool_size: int | None = None
    """Number of rows in the pool; None: `_meta.dataset.pool_size`."""
    recompute: bool = True
    """Whether to judge the recorded answers again, with the metric that `_meta` names."""
    max_findings: int = 100
    """Number of findings to keep per file. The others are counted."""

    def __post_init__(self) -> None:
        if self.pool_size is not None and self.pool_size < 1:
            raise InputError(f"a pool size of {self.pool_size}: a pool has at least one row")
        if self.max_findings < 0:
            raise InputError(f"at most {self.max_findings} findings: give 0 or more")


def validate_file(path: Path, config: ValidationConfig | None = None) -> Report:
    """Check a file of RL data, in the memory of its largest record.

    Raises InputError for a file that cannot be parsed; everything else is in the report.
    """
    run = _Run(path, config or ValidationConfig())
    for member in stream_members(path):
        run.member(member)
    return run.finish()


_MAX_REPORTED = 20
"""Findings of a record that jsonschema reports."""
_MAX_REPORTED_PER_FILE = 1_000
"""Findings of a file that jsonschema reports, at 1 ms for each candidate of a rejected record."""
_OURS = pointer_rl_schemas.version("pointer_candidates")


class _Run:
    """The validation of one file."""

    def __init__(self, path: Path, config: ValidationConfig) -> None:
        self.report = Report(path)
        self._config = config
        self._record_schema = SchemaChecker("pointer_candidates", "record")
        self._meta_schema = SchemaChecker("pointer_candidates", "meta")
        self._beams_schema = SchemaChecker("beams", "record")
        self._reported_left = min(_MAX_REPORTED_PER_FILE, config.max_findings)
        found = find_meta(path)
        recorded = found.value if found and isinstance(found.value, dict) else {}
        self._meta = self._usable(recorded)
        self._rules = self._choose_rules(metric_named="metric" in recorded)
        self._seen: set[str] = set()
        self._layouts: Counter[Layout] = Counter()
        self._first: dict[Layout, Member] = {}

    # --- members ---

    def member(self, member: Member) -> None:
        if member.key in self._seen:
            self._add(member, _duplicate_key((), member.key))
        self._seen.add(member.key)
        for flaw in member.flaws:
            self._add(member, _flaw(flaw, member.key))
        if member.key == "_meta":
            self._check_schema(self._meta_schema, member)
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
            self._check_schema(self._beams_schema, member)
            beams = member.value["beams"]
            self.report.candidates["beam"] += len(beams) if isinstance(beams, list) else 0
            return
        self._count(member.value)
        group = _sound(member, self._check_schema(self._record_schema, member))
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
            self.report.failed += len([each for each in objects if has_failed(each)])

    def _check_schema(self, schema: SchemaChecker, member: Member) -> list[Fault]:
        limit = min(_MAX_REPORTED, self._reported_left)
        faults = schema.faults(member.value, limit)
        self._reported_left -= min(limit, len(faults))
        if faults:
            known = {flaw.path for flaw in member.flaws if flaw.kind == "not-finite"}
            for fault in faults:
                if fault.path not in known:  # the schema also rejects NaN: report it once
                    self._add(member, fault)
        return faults

    def _add(self, member: Member, fault: Fault) -> None:
        pointer = json_pointer((member.key, *fault.path))
        self._keep(Finding(fault.rule, pointer, fault.message, fault.fix, member.line))

    def _keep(self, finding: Finding) -> None:
        self.report.num_findings += 1
        if len(self.report.findings) < self._config.max_findings:
            self.report.findings.append(finding)

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
            self._keep(Finding("empty", "", "no query in this file", "generate the data again", 1))
        expected = self._num_queries()
        if expected is not None and expected > report.queries:
            report.notes.append(f"{report.queries} of {expected} queries: the run was ended early")
        version = self._meta.get("schema_version", _OURS)
        if int(version.partition(".")[2]) > int(_OURS.partition(".")[2]):
            report.notes.append(
                f"of schema version {version}: what was added since {_OURS} is not checked"
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

    # --- _meta and the rules that it allows to check ---

    def _usable(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `_meta` that follow the schema; none if another program wrote it."""
        faulty = {part for fault in self._meta_schema.faults(meta, 0) for part in fault.path[:1]}
        if "schema_version" not in meta.keys() - faulty:
            return {}
        return {key: value for key, value in meta.items() if key not in faulty}

    def _num_queries(self) -> int | None:
        """The number of queries in the file if its run was not ended early."""
        queries: int | None = self._meta.get("dataset", {}).get("num_queries")
        shard = Shard.of(self._meta)
        if queries is None or shard is None:
            return queries
        return shard.size(queries, window_of(self._meta))

    def _choose_rules(self, metric_named: bool) -> list[rules.Rule]:
        chosen: list[rules.Rule] = [
            rules.QueryId(),
            rules.RowInQueryPool(),
            rules.DuplicateCandidate(ordered=self._meta.get("dedup") != "unordered"),
            rules.CorrectAccuracy(metric_named),
        ]
        dataset = self._meta.get("dataset", {})
        recorded, shared_pool = dataset.get("pool_size"), dataset.get("shared_pool")
        pool_size = self._config.pool_size or recorded
        if recorded not in (pool_size, None):
            self.report.notes.append(
                f"rows are checked against the pool size given, {pool_size}; _meta.dataset says "
                f"{recorded}"
            )
        if pool_size is None:
            self._skip(rules.RowInRange, "no pool size: give --pool-size")
        else:
            chosen.append(rules.RowInRange(pool_size))
        if shared_pool is None:
            self._skip(rules.OwnDemonstration, "_meta.dataset.shared_pool is not given")
        elif shared_pool:
            chosen.append(rules.OwnDemonstration())
        shots, max_shots = self._meta.get("shots"), self._meta.get("max_shots")
        if shots is None and max_shots is None:
            self._skip(rules.Shots, "_meta gives neither shots nor max_shots")
        else:
            chosen.append(rules.Shots(shots, max_shots))
        metric = self._metric()
        if metric is not None:
            chosen.append(rules.Accuracy(metric))
        return chosen

    def _metric(self) -> Metric | None:
        named = self._meta.get("metric")
        if not self._config.recompute:
            reason = "switched off (--no-recompute)"
        elif named is None:
            reason = "_meta.metric is not given"
        else:
            name, version = named["name"], named["version"]
            try:
                metric: Metric = registry().create("metric", name, named.get("options"))
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
    """The record without its faulty parts; None if it has no list of candidates."""
    faulty: set[str | int] = set()
    for fault in faults:
        match fault.path:
            case ("pointer_candidates", int() as part, *_) | ("query" | "pool" as part, *_):
                faulty.add(part)
            case ("excluded", *_):
                pass
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


def _flaw(flaw: Flaw, key: str) -> Fault:
    if flaw.kind == "duplicate-key":
        return _duplicate_key(flaw.path, (key, *flaw.path)[-1])
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
        f"the key {key!r} is repeated; most programs read the last one and lose the other",
        "keep one of them",
    )
