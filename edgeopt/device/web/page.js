// Asks edgeopt for messages, passes each to its Web Worker, and sends the answers back.

const state = document.getElementById("state");
const workers = new Map();
const page = Math.random().toString(36).slice(2);
const RETRY_SECONDS = 60;
let sent = Promise.resolve();
let posted = 0;
let session = sessionStorage.getItem(location.pathname);

document.getElementById("threads").textContent = crossOriginIsolated
  ? "This page is cross-origin isolated: threads and a fine clock are allowed."
  : "This page is not cross-origin isolated: the browser allows one thread and a coarse clock.";

// Waits out a short break of the network.
async function ask(path, options) {
  for (let tries = 0; ; tries++) {
    try {
      return await fetch(path, options);
    } catch (error) {
      if (tries >= RETRY_SECONDS) throw new Error("edgeopt can't be reached: it has ended, or the network is down");
      state.textContent = "No connection to edgeopt; trying again";
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
}

async function claim() {
  if (session && (await ask(`arrived/${page}?${session}`, { method: "POST" })).ok) return;
  const response = await ask(`claim/${page}`, { method: "POST" });
  if (!response.ok) throw new Error("this address was already used; start edgeopt again for a new one");
  session = await response.text();
  sessionStorage.setItem(location.pathname, session);
}

function findOrStartWorker(id) {
  if (!workers.has(id)) {
    const worker = new Worker("worker.js", { type: "module" });
    worker.onmessage = ({ data }) => send(id, data);
    worker.onerror = (event) => send(id, { ok: false, kind: "device", reason: event.message || "a Web Worker failed" });
    workers.set(id, worker);
  }
  return workers.get(id);
}

// In order: the outputs must arrive before the answer that mentions them.
function send(id, data) {
  const [kind, body] = data.outputs ? ["outputs", data.outputs] : ["answer", JSON.stringify(data)];
  const number = ++posted;
  sent = sent.then(() => ask(`${kind}/${id}/${number}?${session}`, { method: "POST", body })).catch(end);
}

async function main() {
  await claim();
  for (let last = 0; ; ) {
    const response = await ask(`next/${page}/${last}?${session}`);
    if (response.status === 403) throw new Error("edgeopt no longer accepts this page");
    state.textContent = workers.size ? "Running" : "Waiting for edgeopt";
    if (response.status === 204) continue;
    const { number, id, message } = await response.json();
    last = number;
    if (message) findOrStartWorker(id).postMessage({ message, session });
    else {
      workers.get(id)?.terminate();
      workers.delete(id);
    }
  }
}

function end(error) {
  for (const worker of workers.values()) worker.terminate();
  state.textContent = `Ended: ${error.message}`;
}

addEventListener("pagehide", () => navigator.sendBeacon(`left/${page}?${session}`));
addEventListener("pageshow", (event) => event.persisted && location.reload());
navigator.wakeLock?.request("screen").catch(() => {}); // if refused: the page asks the user to keep the device awake
main().catch(end);
