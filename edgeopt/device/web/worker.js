// edgeopt's worker in a browser: it uses onnxruntime-web, and has the messages and answers of edgeopt/bench/worker.py.

import * as ort from "./ort.wasm.min.mjs";

// onnxruntime-web falls back to one thread without a word, so the threads that it starts are counted here.
let threadCount = 1;
self.Worker = class extends Worker {
  constructor(...options) {
    super(...options);
    threadCount++;
  }
};

const TYPES = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array,
  uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
  bool: Uint8Array, float16: Uint16Array,
};

class Refusal extends Error {
  constructor(kind, reason) {
    super(reason);
    this.kind = kind;
  }
}

let state = { session: "", serving: null };

async function download(name) {
  const response = await fetch(`file/${name}?${state.session}`);
  if (!response.ok) throw new Refusal("model", `${name} does not exist`);
  return response.arrayBuffer();
}

// Records: a line "BATCH DTYPE NDIM DIM... BYTES NAME", then the bytes.
function unpack(buffer) {
  const bytes = new Uint8Array(buffer);
  const batches = [];
  for (let offset = 0; offset < bytes.length; ) {
    const end = bytes.indexOf(10, offset);
    const words = new TextDecoder().decode(bytes.subarray(offset, end)).split(" ");
    const [batch, dtype, ndim] = [Number(words[0]), words[1], Number(words[2])];
    const dims = words.slice(3, 3 + ndim).map(Number);
    const size = Number(words[3 + ndim]);
    const name = words.slice(4 + ndim).join(" ");
    const data = new TYPES[dtype](buffer.slice(end + 1, end + 1 + size));
    (batches[batch] ??= {})[name] = new ort.Tensor(dtype, data, dims);
    offset = end + 1 + size;
  }
  return batches;
}

function pack(batches) {
  const parts = [];
  batches.forEach((batch, index) => {
    for (const [name, tensor] of Object.entries(batch)) {
      const { data, dims, type } = tensor;
      const words = [index, type, dims.length, ...dims, data.byteLength, name];
      parts.push(`${words.join(" ")}\n`, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    }
  });
  return new Blob(parts);
}

function randomTensor({ name, type, shape }, batch) {
  const dims = shape.map((size, axis) => (typeof size === "number" && size >= 0 ? size : axis === 0 ? batch : NaN));
  if (dims.some(Number.isNaN))
    throw new Refusal("input", `input '${name}' has dynamic dimensions besides the batch: pass --inputs FILE.npz`);
  const count = dims.reduce((product, size) => product * size, 1);
  const data = new TYPES[type](count);
  const isWideInteger = type.includes("64") && type !== "float64";
  for (let index = 0; index < count; index++) {
    if (isWideInteger) data[index] = BigInt(Math.random() < 0.5);
    else if (type === "float16") data[index] = 0x3800 | (Math.random() * 0x3ff);
    else if (type.startsWith("float")) data[index] = Math.random() + Math.random() + Math.random() - 1.5;
    else if (type === "int8" || type === "uint8") data[index] = Math.random() * 256;
    else data[index] = Math.random() < 0.5;
  }
  return new ort.Tensor(type, data, dims);
}

async function openSession(request) {
  const other = request.providers.find((name) => name !== "CPUExecutionProvider");
  if (other && !request.allow_fallback.includes("CPUExecutionProvider"))
    throw new Refusal("provider", `a browser only has CPUExecutionProvider (WebAssembly), not ${other}`);
  if (request.threads > 1 && !crossOriginIsolated)
    throw new Refusal("provider", "this page is not cross-origin isolated and runs on 1 thread instead of "
      + `${request.threads}. Set threads = 1 in the target, or serve the page over HTTPS or on localhost`);
  if (request.affinity.length)
    throw new Refusal("profile", "a browser can't bind threads to cores: leave the target's affinity empty");
  ort.env.wasm.numThreads = request.threads;
  const model = new Uint8Array(await download(request.model));
  const begin = performance.now();
  const session = await ort.InferenceSession.create(model, {
    executionProviders: ["wasm"], graphOptimizationLevel: request.graph_level, enableCpuMemArena: request.memory_arena,
  });
  const load_ns = Math.round((performance.now() - begin) * 1e6);
  if (threadCount !== request.threads)
    throw new Refusal("provider", `this browser started ${threadCount} thread(s) instead of ${request.threads}`);
  return { session, load_ns };
}

// One batch: the first of the inputs file, which has as many samples as the request asks for, or random values.
async function makeFeed(session, request) {
  const given = request.inputs ? unpack(await download(request.inputs))[0] : null;
  return Object.fromEntries(session.inputMetadata.map((entry) => {
    if (given && !given[entry.name]) throw new Refusal("input", `the inputs file has no array '${entry.name}'`);
    return [entry.name, given ? given[entry.name] : randomTensor(entry, request.batch_size)];
  }));
}

async function repeat(session, inputs, minRuns, minSeconds, maxSeconds) {
  const times = [];
  const begin = performance.now();
  for (;;) {
    const start = performance.now();
    await session.run(inputs);
    const end = performance.now();
    times.push(Math.round((end - start) * 1e6));
    const elapsed = (end - begin) / 1000;
    if ((elapsed >= minSeconds && times.length >= minRuns) || elapsed >= maxSeconds) return times;
  }
}

function median(times) {
  const sorted = times.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

// Like worker.py, with its numbers: block after block, until one is no faster than the block before.
async function warmUp(session, inputs, { warmup_runs, warmup_seconds, max_seconds }) {
  const end = performance.now() + 1000 * max_seconds;
  let times = await repeat(session, inputs, warmup_runs, warmup_seconds, max_seconds);
  let [runs, before] = [times.length, median(times.slice(-5))];
  while (performance.now() < end) {
    times = await repeat(session, inputs, 5, 0.03, max_seconds);
    runs += times.length;
    if (median(times) > 0.98 * before) return [runs, true];
    before = median(times);
  }
  return [runs, false];
}

const MODES = {
  async describe() {
    return {
      family: `wasm ${navigator.platform}`, processor: navigator.userAgent,
      features: [crossOriginIsolated ? "cross-origin-isolated" : "not-cross-origin-isolated"], cores: navigator.hardwareConcurrency,
      memory_bytes: (navigator.deviceMemory ?? 0) * 2 ** 30, system: navigator.platform, python: "none: a browser",
      onnxruntime: ort.env.versions.web, numpy: "none", providers: ["CPUExecutionProvider"], governor: null,
      temperature_c: null,
    };
  },
  async memory() {
    return { supported: false };
  },
  async time(request) {
    const { session, load_ns } = await openSession(request);
    const inputs = await makeFeed(session, request);
    const [warmup_runs, steady] = await warmUp(session, inputs, request);
    const times = await repeat(session, inputs, request.min_runs, request.min_seconds, request.max_seconds);
    return {
      wall_ns: times, cpu_ns: times, warmup_runs, steady, load_ns, involuntary_switches: 0, pressure_ratio: null,
      cooled_seconds: 0, temperatures_c: null, nodes: {},
    };
  },
  async outputs(request) {
    const { session } = await openSession(request);
    const results = [];
    for (const batch of unpack(await download(request.inputs))) {
      const before = results.at(-1) ?? {};
      for (const [name, output] of Object.entries(request.states ?? {})) {
        if (!(name in batch) && output in before) batch[name] = before[output];
      }
      results.push(await session.run(batch));
    }
    postMessage({ outputs: pack(results) });
    return { batches: results.length };
  },
  async serve(request) {
    const { session } = await openSession(request);
    const inputs = await makeFeed(session, request);
    await repeat(session, inputs, request.warmup_runs, request.warmup_seconds, request.max_seconds);
    state.serving = { session, inputs };
    return { nodes: {}, precise_cpu_clock: false };
  },
};

async function runBlock({ session, inputs }, { warmup_runs, min_runs, min_seconds, max_seconds }) {
  await repeat(session, inputs, warmup_runs, 0, max_seconds);
  const times = await repeat(session, inputs, min_runs, min_seconds, max_seconds);
  return { wall_ns: times, cpu_ns: times };
}

onmessage = async ({ data: { message, session } }) => {
  state.session = session;
  try {
    const fields = state.serving ? await runBlock(state.serving, message) : await MODES[message.mode](message);
    postMessage({ ok: true, ...fields });
  } catch (error) {
    postMessage({ ok: false, kind: error.kind ?? "model", reason: String(error.message ?? error) });
  }
};
