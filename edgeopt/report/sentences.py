"""The sentences that the terminal and the page share: the document goes in, one statement comes out, or None."""

from __future__ import annotations

from edgeopt.records.budget import Budget, Limit
from edgeopt.records.choice import Miss
from edgeopt.records.measurement import Estimate
from edgeopt.records.recipe import Distill, RefinementStep, Sparsify
from edgeopt.report import words
from edgeopt.report.document import Document, TrialPart
from edgeopt.report.failures import share_of_failed
from edgeopt.report.parts import LatencyComparison, LayerChange
from edgeopt.report.proof import ProofRow, build_proof, is_higher_better, with_runtime

_MAX_NAMED_LAYERS = 3
"""In a sentence; the page has them all."""
_LIMIT_NAMES: dict[Limit, str] = {
    "latency": "latency",
    "throughput": "throughput",
    "memory": "peak memory",
    "size": "size",
    "score": "score",
    "class": "drop of the worst class",
    "flips": "changed answers",
}


def deciding_size(trial: TrialPart, budget: Budget) -> int | None:
    """Return the bytes by which files are compared: of the file, or of the download."""
    return budget.deciding_bytes(trial.size_bytes, trial.download_bytes)


def latency_name(document: Document) -> str:
    """Name the latency that decides: ``Latency p90``, or ``Latency p90, estimated``."""
    return f"Latency p{document.budget.latency_percentile}{', estimated' if document.estimate else ''}"


def headline(document: Document) -> str:
    """Summarize the result."""
    winner, budget = document.winner, document.budget
    if winner is None:
        return "No trial keeps every limit."
    size = _size_text(winner, budget)
    if winner.number == document.baseline.number:
        return f"The baseline itself is the smallest file that keeps every limit: {size}."
    before, after = deciding_size(document.baseline, budget), deciding_size(winner, budget)
    gains = []
    if before and after:
        gains.append(
            f"{words.times(before / after)} smaller" if after <= before else f"{words.times(after / before)} larger"
        )
    if winner.against_baseline is not None:
        gains.append(f"{'on this machine ' if document.estimate else ''}{speed(winner.against_baseline)}")
    comparison = f" It is {words.listed(gains)} than the baseline." if gains else ""
    return f"Trial {winner.number} keeps every limit at {size}.{comparison}"


def _size_text(trial: TrialPart, budget: Budget) -> str:
    """Write a file's size, and in brackets that with the runtime if the size limit is about both."""
    size = deciding_size(trial, budget)
    text = words.quantity(size, "bytes")
    if size is None or budget.runtime_size_bytes is None:
        return text
    return f"{text} ({words.size(budget.judged_bytes(size))} with the runtime)"


def speed(against: LatencyComparison) -> str:
    """Put an A/B into words: ``4.1× faster``, with its interval in brackets."""
    ratio, (low, high) = against.latency_ratio, against.ci95
    if against.verdict == "slower":
        return f"{words.times(ratio)} slower (95 %: {words.significant(low)} to {words.times(high)})"
    interval = f"95 %: {words.significant(1 / high)} to {words.times(1 / low)}"
    if against.verdict == "faster":
        return f"{words.times(1 / ratio)} faster ({interval})"
    return f"not measurably faster or slower ({words.times(1 / ratio)} the speed, {interval})"


def miss_text(miss: Miss, budget: Budget, *, higher: bool = True) -> str:
    """Name a missed limit with its value and the limit: ``latency 1.20 ms (≤ 1 ms)``.

    Args:
        miss: The miss.
        budget: The limits.
        higher: Whether a higher score is better.
    """
    name = _LIMIT_NAMES[miss.limit]
    is_drop = miss.limit == "score" and miss.allowed == budget.max_score_drop
    if miss.limit == "score" and not higher:
        name = "error"
    name += (" drop" if higher else " increase") if is_drop else ""
    if miss.found is None:
        return f"{name} unknown"
    name += " of up to" if is_drop else ""  # the end of its interval is judged
    unit = unit_of(miss.limit)
    found, allowed = words.distinguishable(miss.found, miss.allowed, unit), words.limit(miss.allowed, unit)
    is_minimum = miss.limit == "throughput" or (miss.limit == "score" and not is_drop and higher)
    sign, noise = "≥" if is_minimum else "≤", ", within the noise" if miss.within_noise else ""
    runtime = with_runtime(budget) if miss.limit == "size" else ""
    return f"{name} {found}{runtime} ({sign}{words.NBSP}{allowed}{noise})"


def unit_of(limit: Limit) -> words.Unit:
    """Return the unit of a limit's values."""
    units: dict[Limit, words.Unit] = {"latency": "ms", "throughput": "per_s", "memory": "bytes", "size": "bytes"}
    return units.get(limit, "score")


def binding(document: Document) -> str:
    """Say which limits keep the file from being smaller, and which trials show it."""
    if document.infeasible is not None:
        nearest = document.infeasible.nearest
        missed = words.listed([_LIMIT_NAMES[limit] for limit in document.binding])
        near = "" if nearest is None else f"Trial {nearest} is the nearest and misses {missed}. "
        return near + document.infeasible.advice
    names = words.listed([_LIMIT_NAMES[limit] for limit in document.binding])
    if not names:
        return "No limit keeps the file from being smaller, because every limit is waived."
    reasons = [text for limit in document.binding if (text := _stopped_by(document, limit))]
    label = f"Binding limit{'' if len(document.binding) == 1 else 's'}: {names}"
    if reasons:
        return f"{label}. {' '.join(reasons)}"
    room = _room(document, document.binding[0])
    failed = document.failed_trainings
    but = f", but {share_of_failed(failed)}" if failed else ""
    return f"{label}, which has the least room{room}; no smaller trial missed a limit{but}."


def _stopped_by(document: Document, limit: Limit) -> str | None:
    """Name the largest smaller trial that misses this limit, preferring one that misses nothing else."""
    stopped = [trial for trial in smaller_trials(document) if any(miss.limit == limit for miss in trial.misses or ())]
    if not stopped:
        return None
    next_smaller = min(
        stopped,
        key=lambda trial: (len({m.limit for m in trial.misses or ()}), -(deciding_size(trial, document.budget) or 0)),
    )
    missed = words.listed(
        [
            miss_text(m, document.budget, higher=is_higher_better(next_smaller))
            for m in next_smaller.misses or ()
            if m.limit == limit
        ]
    )
    smaller = words.quantity(deciding_size(next_smaller, document.budget), "bytes")
    return f"Trial {next_smaller.number} would be smaller ({smaller}), but misses {missed}."


def smaller_trials(document: Document) -> list[TrialPart]:
    """Return the measured trials that are smaller than the winner."""
    winner = document.winner
    limit = deciding_size(winner, document.budget) if winner else None
    if limit is None:
        return []
    sizes = [(trial, deciding_size(trial, document.budget)) for trial in document.trials]
    return [trial for trial, size in sizes if size is not None and size < limit]


def _room(document: Document, limit: Limit) -> str:
    """Say how much of a limit the winner uses: `` (98 % of 2 MB)``."""
    rows = build_proof(document.winner, document.budget) if document.winner else ()
    row = next((row for row in rows if row.limit == limit), None)
    if row is None or row.judged is None or not row.allowed:
        return ""
    return f" ({words.percent(max(0.0, row.judged / row.allowed))} of {words.limit(row.allowed, row.unit)})"


def near_misses(document: Document) -> str | None:
    """Name smaller trials that miss a single limit, each with the limit that would let it win."""
    if not document.near_misses:
        return None
    ways = [
        f"trial {one.trial} ({words.quantity(one.size_bytes, 'bytes')}) with {one.relief}"
        for one in document.near_misses
    ]
    return f"Smaller files that miss one limit: {'; '.join(ways)}."


def barred(document: Document) -> str | None:
    """Name the smaller trials that keep every limit and still lost, because they are slower than the baseline."""
    slow = [trial for trial in smaller_trials(document) if trial.pays is False and not trial.misses]
    numbers = [str(trial.number) for trial in slow if not is_slower_than_float(trial)]
    if not numbers:
        return None
    if len(numbers) == 1:
        start, reason = f"Trial {numbers[0]} is smaller and within the limits, but was", "it is"
    else:
        start, reason = f"Trials {words.listed(numbers)} are smaller and within the limits, but were", "they are"
    return f"{start} left out: {reason} slower than the baseline, which keeps the limits too."


def passed_over(document: Document) -> str | None:
    """Say why a smaller trial that keeps every limit and is not slower than the baseline did not win; None if none."""
    winner, prefer = document.winner, document.budget.prefer
    replaced = {
        trial.full_int8
        for trial in document.trials
        if trial.against_full_int8 is not None and trial.against_full_int8.verdict == "faster"
    }
    good = [
        trial
        for trial in smaller_trials(document)
        if not trial.misses and trial.pays is not False and trial.number not in replaced
    ]
    if winner is None or not good:
        return None
    smaller = min(good, key=lambda trial: (deciding_size(trial, document.budget) or 0, trial.number))
    size = words.quantity(deciding_size(smaller, document.budget), "bytes")
    start = f"Trial {smaller.number} is smaller ({size}) and within the limits, but"
    if prefer == "memory":
        return f"{start} --prefer memory picks the file with the least peak memory."
    mine, other = winner.against_baseline, smaller.against_baseline
    if mine is None or other is None:
        return f"{start} was not as quick when it was measured."
    longer = f"{start} takes {words.times(other.latency_ratio / mine.latency_ratio)} as long"
    if prefer == "latency":
        return f"{longer}, and --prefer latency picks the quickest file."
    return f"{longer}: of files of about the same size the quicker one is picked."


def offer(document: Document) -> str | None:
    """Say how to get the smallest file that was left out because it is slower, int8 or not."""
    slow = [trial for trial in smaller_trials(document) if trial.pays is False and not trial.misses]
    sizes = [(size, trial) for trial in slow if (size := deciding_size(trial, document.budget)) is not None]
    if not sizes:
        return None
    size, trial = min(sizes, key=lambda pair: (pair[0], pair[1].number))
    return (
        f"If bytes count more than time, the same command with --size-mb {(size + 1) / 1e6:.6f} picks trial "
        f"{trial.number} ({words.size(size)}), without training again."
    )


def is_slower_than_float(trial: TrialPart) -> bool:
    """Tell whether an int8 trial's A/B found it slower than its float counterpart."""
    return trial.against_float is not None and trial.against_float.verdict == "slower"


def int8_losses(document: Document) -> list[str]:
    """Say how much slower each slower int8 trial is than its float counterpart, and which layers became slower."""
    sentences = []
    for trial in document.trials:
        if trial.against_float is None or not is_slower_than_float(trial):
            continue
        is_left_out = trial.pays is False and not trial.misses and trial != document.winner
        out = " and was left out" if is_left_out else ""
        text = f"Trial {trial.number} in int8 is {speed(trial.against_float)} than the same network in float32{out}."
        slower = [change for change in trial.changes_against_float if change.ms > change.float_ms]
        if slower:
            text += f" Layers that became slower: {words.listed([layer_text(c) for c in slower[:_MAX_NAMED_LAYERS]])}."
        sentences.append(text)
    return sentences


def float_nodes(document: Document) -> str | None:
    """Say which nodes the shown trial keeps in float for the score, and why these."""
    nearest = document.infeasible.nearest if document.infeasible else None
    shown = document.winner or (None if nearest is None else document.trial(nearest))
    in_float = [node for node in shown.sensitivity if node.stays_float] if shown else []
    if not in_float or shown is None:
        return None
    named = [
        f"{node.node} ({node.snr_db:.1f} dB, {words.percent(node.cost_ratio)})" for node in in_float[:_MAX_NAMED_LAYERS]
    ]
    more = f" and {len(in_float) - _MAX_NAMED_LAYERS} more" if len(in_float) > _MAX_NAMED_LAYERS else ""
    return (
        f"Trial {shown.number} keeps {len(in_float)} of {words.plural(len(shown.sensitivity), 'node')} in float: those "
        "that disturb the outputs most in int8, relative to their cost in float (in brackets: signal to noise if only "
        f"this node is in int8, share of bytes and work): {words.listed(named) if not more else ', '.join(named)}"
        f"{more}."
    )


def layer_text(change: LayerChange) -> str:
    """Name layers and their times: ``Conv → QLinearConv 1×96×28×28 (0.108 → 0.132 ms)``."""
    shape = "".join(f" {'×'.join(map(str, change.shape))}" for _ in change.shape[:1])
    times = f"{words.significant(change.float_ms)} → {words.significant(change.ms)} ms"
    count = max(change.nodes)
    return f"{change.operator}{shape} ({f'{count} of them, ' if count > 1 else ''}{times})"


def teacher(document: Document) -> str | None:
    """Name the teacher of the trained networks: a file, or the original network."""
    trained = [trial for trial in document.trials if trial.status == "measured"]
    if not any(isinstance(step, Distill) for trial in trained for step in trial.recipe.torch_steps):
        return None
    return f"The trained networks were taught by {document.teacher or f'the original network of {document.task}'}."


def float_prefix_notes(document: Document) -> list[str]:
    """Say what the float prefix of each int8 trial that has one saves in time and costs in bytes."""
    notes = []
    for trial in document.trials:
        if trial.against_full_int8 is None or trial.full_int8 is None:
            continue
        full_int8 = document.trial(trial.full_int8)
        size_bytes, full_size_bytes = (deciding_size(part, document.budget) or 0 for part in (trial, full_int8))
        difference = words.quantity(abs(size_bytes - full_size_bytes), "bytes")
        size = f"{difference} {'larger' if size_bytes > full_size_bytes else 'smaller'}"
        reason = ", because int8 saved no time there" if trial.against_full_int8.verdict == "faster" else ""
        text = f"Trial {trial.number} is trial {full_int8.number} with its first layers in float{reason}"
        notes.append(f"{text}: the file is {size}, and it runs {speed(trial.against_full_int8)}.")
    return notes


def variant_gains(document: Document) -> list[str]:
    """Compare each refined trial with the trial it was made from, and list what was not tried.

    Download and time are measured: a dense kernel multiplies zeros like other numbers.
    """
    gains = []
    for trial in document.trials:
        if trial.against_parent is None or trial.parent is None:
            continue
        parent = document.trial(trial.parent)
        step = next(step for step in trial.recipe.torch_steps if isinstance(step, RefinementStep))
        is_sparse = isinstance(step, Sparsify)
        after, before = ((part.download_bytes if is_sparse else part.size_bytes) for part in (trial, parent))
        if not after or not before:
            continue
        measured = "download" if is_sparse else "file"
        size = f"{words.times(before / after)} smaller" if after <= before else f"{words.times(after / before)} larger"
        change = words.steps_text((step,), None)
        text = f"Trial {trial.number} is trial {parent.number} with {change}: the {measured} is {size}"
        gains.append(f"{text}, and it runs {speed(trial.against_parent)}.")
    return [*gains, *document.notes]


def waived(document: Document) -> str | None:
    """Name the waived limits."""
    names = [_LIMIT_NAMES[row.limit] for row in build_proof(document.baseline, document.budget) if row.allowed is None]
    return f"Waived: {words.listed(names)}." if names else None


def device(document: Document) -> str:
    """Name the device that was measured, and say whether the numbers prove anything about the target."""
    machine = document.environment.processor if document.environment else "an unknown processor"
    threads = f", {words.plural(document.threads, 'thread')}" if document.threads else ""
    measured_on = f"{machine}{threads} ({document.device.uri})"
    if document.proven_on_target:
        return f"Measured on the target itself, {measured_on}."
    advice = "Build again with --device URI to measure the finished trials there, without training."
    if document.estimate is not None:
        return (
            f"{estimate_notes(document.estimate, document.target)} Memory and scores are those of {measured_on}; "
            f"nothing is proven on the target. {advice}"
        )
    return (
        f"Measured on {measured_on}, which only stands in for the {document.target}: nothing is proven on the target. "
        f"{advice}"
    )


def caution(document: Document) -> str | None:
    """Warn at the top that nothing is proven on the target, and why; None if it is."""
    if document.proven_on_target:
        return None
    if document.estimate is None:
        return "Not measured on the target itself: this machine stood in for it."
    error = words.percent(document.estimate.error_ratio)
    return (
        f"Not measured on the target itself: its latency is estimated, with a median error of {error} in calibration."
    )


def estimate_notes(estimate: Estimate, target: str) -> str:
    """Say that latencies are estimated, by which calibration, and how accurate it was."""
    unseen = estimate.unseen_ratio
    missing = f" {words.percent(unseen)} of the time is in operators that it lacks." if unseen >= 0.01 else ""
    return (
        f"Latencies are estimated, not measured: by the calibration of {estimate.made_at[:10]}, when the {target} was "
        f"{estimate.device.uri} (onnxruntime {estimate.device_runtime}). Its median error on {estimate.networks} "
        f"held-out networks was {words.percent(estimate.error_ratio)}.{missing} The upper end of the interval is "
        "compared with the limit."
    )


def time_spent(document: Document) -> str | None:
    """Say where the time went, longest first."""
    if not document.seconds:
        return None
    longest = sorted(document.seconds.items(), key=lambda stage: -stage[1])
    parts = [f"{stage} {words.duration(seconds)}" for stage, seconds in longest]
    return f"Where the time went ({words.duration(sum(document.seconds.values()))}): {', '.join(parts)}."


def compared_rows(document: Document) -> tuple[tuple[ProofRow, ProofRow | None], ...]:
    """Pair the baseline's rows of the proof with the winner's, or with the nearest trial's if there is no winner."""
    nearest = document.infeasible.nearest if document.infeasible else None
    other = document.winner or (None if nearest is None else document.trial(nearest))
    before = build_proof(document.baseline, document.budget)
    after = build_proof(other, document.budget) if other else (None,) * len(before)
    return tuple(zip(before, after, strict=True))
