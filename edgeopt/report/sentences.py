"""The sentences that the terminal and the page share; each takes the document and says one thing, or nothing."""

from __future__ import annotations

from edgeopt.records.budget import Budget, Limit
from edgeopt.records.choice import Miss
from edgeopt.records.measurement import Estimate
from edgeopt.records.recipe import Distill, LowRank, Sparsify
from edgeopt.report import words
from edgeopt.report.document import Against, Document, LayerChange, TrialPart
from edgeopt.report.proof import Row, proof

MOST_LAYERS = 3
"""So many are named in a sentence; the page has them all."""
LIMIT_NAMES: dict[Limit, str] = {
    "latency": "latency",
    "throughput": "throughput",
    "memory": "peak memory",
    "size": "size",
    "score": "score",
}


def recipe_text(trial: TrialPart, document: Document) -> str:
    """Put a trial's recipe into words, with its parameters as a share of the baseline's."""
    whole = document.baseline.parameters
    ratio = trial.parameters / whole if trial.parameters is not None and whole else None
    return words.recipe(trial.recipe, ratio)


def deciding_size(trial: TrialPart, budget: Budget) -> int | None:
    """Return the bytes that decide: of the file, or of the download."""
    return trial.download_bytes if budget.size_metric == "download" else trial.size_bytes


def latency_name(document: Document) -> str:
    """Name the latency that decides: ``Latency p90``, or ``Latency p90, estimated``."""
    return f"Latency p{document.budget.latency_percentile}{', estimated' if document.estimate else ''}"


def headline(document: Document) -> str:
    """Say the result in one sentence."""
    winner, budget = document.winner, document.budget
    if winner is None:
        return "Nothing keeps the limits."
    own = words.quantity(deciding_size(winner, budget), "bytes")
    if winner.number == document.baseline.number:
        return f"The baseline itself is the smallest file that keeps the limits: {own}."
    before, after = deciding_size(document.baseline, budget), deciding_size(winner, budget)
    gains = []
    if before and after:
        gains.append(
            f"{words.times(before / after)} smaller" if after <= before else f"{words.times(after / before)} larger"
        )
    if winner.against_baseline is not None:
        gains.append(f"{'on this machine ' if document.estimate else ''}{speed(winner.against_baseline)}")
    compared = f" It is {words.listed(gains)} than the baseline." if gains else ""
    return f"Trial {winner.number} keeps every limit at {own}.{compared}"


def speed(against: Against) -> str:
    """Say an A/B in words: ``4.1× faster``, with its interval in brackets."""
    ratio, (low, high) = against.latency_ratio, against.ci95
    if against.verdict == "slower":
        return f"{words.times(ratio)} slower (95 %: {words.significant(low)} to {words.times(high)})"
    faster = f"{words.times(1 / ratio)} faster (95 %: {words.significant(1 / high)} to {words.times(1 / low)})"
    return faster if against.verdict == "faster" else f"not measurably faster or slower ({faster})"


def miss_text(miss: Miss, budget: Budget) -> str:
    """Say what is missed and by how much: ``latency 1.20 ms (≤ 1.00 ms)``."""
    name = LIMIT_NAMES[miss.limit]
    drop = miss.limit == "score" and miss.allowed == budget.max_score_drop
    name += " drop" if drop else ""
    if miss.found is None:
        return f"{name} unknown"
    unit: dict[Limit, words.Unit] = {"latency": "ms", "throughput": "per_s", "score": "score"}
    written = unit.get(miss.limit, "bytes")
    found, allowed = words.distinguishable(miss.found, miss.allowed, written), words.limit(miss.allowed, written)
    floor = miss.limit == "throughput" or (miss.limit == "score" and not drop)
    sign, noise = "≥" if floor else "≤", ", inside the noise" if miss.within_noise else ""
    return f"{name} {found} ({sign}{words.NBSP}{allowed}{noise})"


def binding(document: Document) -> str:
    """Say which limit keeps the file from being smaller, and how that is known."""
    if document.infeasible is not None:
        nearest = document.infeasible.nearest
        missed = words.listed([LIMIT_NAMES[limit] for limit in document.binding])
        near = "" if nearest is None else f"Trial {nearest} is nearest and misses {missed}. "
        return near + document.infeasible.advice
    names = words.listed([LIMIT_NAMES[limit] for limit in document.binding])
    if not names:
        return "Every limit is waived: nothing binds."
    reasons = [text for limit in document.binding if (text := _stopped_by(document, limit))]
    if reasons:
        return f"What binds: {names}. {' '.join(reasons)}"
    room = _room(document, document.binding[0])
    return f"What binds: {names}, which has the least room{room}; no smaller candidate missed a limit."


def _stopped_by(document: Document, limit: Limit) -> str | None:
    """Name the next smaller trial that misses this limit, preferring one that misses nothing else."""
    stopped = [trial for trial in smaller_trials(document) if any(miss.limit == limit for miss in trial.misses or ())]
    if not stopped:
        return None
    next_smaller = min(
        stopped,
        key=lambda trial: (len({m.limit for m in trial.misses or ()}), -(deciding_size(trial, document.budget) or 0)),
    )
    missed = words.listed([miss_text(m, document.budget) for m in next_smaller.misses or () if m.limit == limit])
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
    """Say how much of a limit the winner uses: `` (98 % of 2.00 MB)``."""
    row = (
        next((row for row in proof(document.winner, document.budget) if row.limit == limit), None)
        if document.winner
        else None
    )
    if row is None or row.judged is None or not row.allowed:
        return ""
    return f" ({words.percent(max(0.0, row.judged / row.allowed))} of {words.limit(row.allowed, row.unit)})"


def barred(document: Document) -> str | None:
    """Name the smaller trials that keep every limit and still lost, because they are slower than the baseline."""
    slow = [trial for trial in smaller_trials(document) if trial.pays is False and not trial.misses]
    numbers = [str(trial.number) for trial in slow if not slower_than_twin(trial)]
    if not numbers:
        return None
    which = f"Trial {numbers[0]} is" if len(numbers) == 1 else f"Trials {words.listed(numbers)} are"
    return f"{which} smaller and within the limits, but slower than the baseline, which keeps them too: left out."


def slower_than_twin(trial: TrialPart) -> bool:
    """Tell whether an int8 trial's A/B found it slower than the same network in float32."""
    return trial.against_float is not None and trial.against_float.verdict == "slower"


def twins(document: Document) -> list[str]:
    """Say of each int8 trial that is slower than its float32 form how much, and which layers ate the gain."""
    found = []
    for trial in document.trials:
        if trial.against_float is None or not slower_than_twin(trial):
            continue
        lost_out = trial.pays is False and not trial.misses and trial != document.winner
        out = " and was left out" if lost_out else ""
        text = f"Trial {trial.number} in int8 is {speed(trial.against_float)} than the same network in float32{out}."
        lost = [change for change in trial.changes_against_float if change.ms > change.float_ms][:MOST_LAYERS]
        if lost:
            text += f" What ate the gain: {words.listed([layer_text(change) for change in lost])}."
        found.append(text)
    return found


def mixed(document: Document) -> str | None:
    """Say which layers the shown trial keeps in float, and why these."""
    nearest = document.infeasible.nearest if document.infeasible else None
    shown = document.winner or (None if nearest is None else document.trial(nearest))
    floats = [one for one in shown.sensitivity if one.stays_float] if shown else []
    if not floats or shown is None:
        return None
    named = [f"{one.node} ({one.snr_db:.1f} dB, {words.percent(one.cost_ratio)})" for one in floats[:MOST_LAYERS]]
    more = f" and {len(floats) - MOST_LAYERS} more" if len(floats) > MOST_LAYERS else ""
    return (
        f"Trial {shown.number} keeps {len(floats)} of {words.plural(len(shown.sensitivity), 'node')} in float, those "
        "that disturb the outputs most in int8 for what float costs (signal to noise of each alone, its share of bytes "
        f"and work): {words.listed(named) if not more else ', '.join(named)}{more}."
    )


def layer_text(change: LayerChange) -> str:
    """Name layers with their times: ``Conv → QLinearConv 1×96×28×28 (0.108 → 0.132 ms)``."""
    shape = "".join(f" {'×'.join(map(str, change.shape))}" for _ in change.shape[:1])
    times = f"{words.significant(change.float_ms)} → {words.significant(change.ms)} ms"
    count = max(change.nodes)
    return f"{change.operator}{shape} ({f'{count} of them, ' if count > 1 else ''}{times})"


def taught(document: Document) -> str | None:
    """Say who taught what was trained: a file, or the original network."""
    if not any(isinstance(step, Distill) for trial in document.trials for step in trial.recipe.torch_steps):
        return None
    return f"The trained networks were taught by {document.teacher or f'the original network of {document.task}'}."


def float_prefix_notes(document: Document) -> list[str]:
    """Say of each int8 trial whose first layers are float what that bought, in time and in bytes."""
    said = []
    for trial in document.trials:
        if trial.against_full_int8 is None or trial.plain is None:
            continue
        plain = document.trial(trial.plain)
        ours, theirs = (deciding_size(one, document.budget) or 0 for one in (trial, plain))
        size = f"{words.quantity(abs(ours - theirs), 'bytes')} {'larger' if ours > theirs else 'smaller'}"
        why = ", where int8 saved no time" if trial.against_full_int8.verdict == "faster" else ""
        text = f"Trial {trial.number} is trial {plain.number} with its first layers in float{why}"
        said.append(f"{text}: the file is {size}, and it runs {speed(trial.against_full_int8)}.")
    return said


def variants(document: Document) -> list[str]:
    """Say what zeros and low rank bought, and what not, against the network they were made of; and what was not tried.

    Download and time are measured: a dense kernel multiplies zeros as it does other numbers.
    """
    said = []
    for trial in document.trials:
        if trial.against_parent is None or trial.parent is None:
            continue
        parent = document.trial(trial.parent)
        sparse = any(isinstance(step, Sparsify) for step in trial.recipe.torch_steps)
        ours, theirs = ((t.download_bytes if sparse else t.size_bytes) for t in (trial, parent))
        if not ours or not theirs:
            continue
        what = "download" if sparse else "file"
        size = f"{words.times(theirs / ours)} smaller" if ours <= theirs else f"{words.times(ours / theirs)} larger"
        bought = f"Trial {trial.number} is trial {parent.number} with {_variant(trial)}: the {what} is {size}"
        said.append(f"{bought}, and it runs {speed(trial.against_parent)}.")
    return [*said, *document.notes]


def _variant(trial: TrialPart) -> str:
    """Name what a sparse or low-rank trial changed of its parent."""
    step = next(step for step in trial.recipe.torch_steps if isinstance(step, Sparsify | LowRank))
    match step:
        case Sparsify(ratio=ratio):
            return f"{words.percent(ratio)} of its weights at zero"
        case LowRank(layers=layers):
            return f"{words.plural(len(layers), 'layer')} of low rank"


def waived(document: Document) -> str | None:
    """Name the limits that nobody asked to keep."""
    names = [LIMIT_NAMES[row.limit] for row in proof(document.baseline, document.budget) if row.allowed is None]
    return f"Waived: {words.listed(names)}." if names else None


def noise_notes(document: Document) -> list[str]:
    """Say which differences cannot be told from chance, and which timings were disturbed."""
    found = []
    winner = document.winner
    if winner is not None and winner.number != document.baseline.number and winner.score_drop_ci95 is not None:
        low, high = winner.score_drop_ci95
        if low <= 0 <= high:
            found.append(
                f"The drop of the score, {words.score(low)} to {words.score(high)} (95 %), cannot be told from none."
            )
    near = [t for t in smaller_trials(document) if t.misses and all(miss.within_noise for miss in t.misses)]
    for trial in near:
        missed = words.listed([miss_text(miss, document.budget) for miss in trial.misses or ()])
        found.append(f"Trial {trial.number} is smaller and misses {missed}.")
    disturbed = [trial for trial in document.trials if trial.contended_processes]
    if disturbed:
        numbers = words.listed([str(trial.number) for trial in disturbed])
        found.append(
            f"Other load disturbed the timing of {'trial' if len(disturbed) == 1 else 'trials'} {numbers}: "
            "measure again on a quiet machine before you rely on milliseconds."
        )
    for trial in document.trials:
        other = [words.noise_text(kind, ratio) for kind, ratio in (trial.noise or {}).items() if kind != "load"]
        if other:
            found.append(f"Timing of trial {trial.number}: {words.listed(other)}.")
    return found


def device(document: Document) -> str:
    """Say where the numbers come from, and whether they prove anything about the target."""
    machine = document.environment.processor if document.environment else "an unknown processor"
    threads = f", {words.plural(document.threads, 'thread')}" if document.threads else ""
    where = f"{machine}{threads} ({document.device.uri})"
    if document.proven_on_target:
        return f"Measured on the target itself, {where}."
    if document.estimate is not None:
        return (
            f"{estimate_notes(document.estimate, document.target)} Memory and scores are those of {where}; nothing is "
            "proven on the target. Build again with --device to measure what exists there, without training."
        )
    return (
        f"Measured on {where}, which only stands in for the {document.target}: nothing is proven on the target. "
        "Build again with --device to measure what exists there, without training."
    )


def caution(document: Document) -> str | None:
    """Say on top that nothing is proven on the target, and why; None where it is."""
    if document.proven_on_target:
        return None
    if document.estimate is None:
        return "Not proven on the target: a stand-in was measured."
    error = words.percent(document.estimate.error_ratio)
    return (
        f"Not proven on the target: its latency is estimated, by a calibration that was off by {error} at the median."
    )


def estimate_notes(estimate: Estimate, target: str) -> str:
    """Say that latencies are foretold, from what, and how far off that was."""
    unseen = estimate.unseen_ratio
    lacking = f" {words.percent(unseen)} of the time is in operators that it lacks." if unseen >= 0.01 else ""
    return (
        f"Latencies are estimated, not measured: by the calibration of {estimate.made_at[:10]}, when the {target} was "
        f"{estimate.device.uri} (onnxruntime {estimate.device_runtime}); on {estimate.networks} networks that it had "
        f"not seen, it was off by {words.percent(estimate.error_ratio)} at the median.{lacking} The upper end of the "
        "interval judges the limit."
    )


def tested(document: Document) -> str | None:
    """Give the scores on the test batches, which decided nothing."""
    test = document.test
    if test is None:
        return None
    drop = test.baseline_score - test.winner_score
    span = test.drop_ci95
    interval = "" if span is None else f", 95 %: {words.score(span[0])} to {words.score(span[1])}"
    return (
        f"On {test.samples:,} test samples, looked at once: baseline {words.score(test.baseline_score)}, "
        f"winner {words.score(test.winner_score)} (drop {words.score(drop)}{interval})."
    )


def time_spent(document: Document) -> str | None:
    """Say where the time went, longest first."""
    if not document.seconds:
        return None
    longest = sorted(document.seconds.items(), key=lambda stage: -stage[1])
    parts = [f"{stage} {words.duration(seconds)}" for stage, seconds in longest]
    return f"Where the time went ({words.duration(sum(document.seconds.values()))}): {', '.join(parts)}."


def compared_rows(document: Document) -> tuple[tuple[Row, Row | None], ...]:
    """Pair the baseline's rows of the proof with those of the winner, or of the nearest trial where none won."""
    nearest = document.infeasible.nearest if document.infeasible else None
    other = document.winner or (None if nearest is None else document.trial(nearest))
    ours = proof(other, document.budget) if other else (None,) * len(proof(document.baseline, document.budget))
    return tuple(zip(proof(document.baseline, document.budget), ours, strict=True))
