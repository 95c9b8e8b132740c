// Asks edgeopt for messages, hands each to a Web Worker of its own, and sends the answers back.

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

// A network that breaks for a moment is waited for.
async function ask(path, options) {
  for (let tries = 0; ; tries++) {
    try {
      return await fetch(path, options);
    } catch (error) {
      if (tries >= RETRY_SECONDS) throw new Error("edgeopt cannot be reached any more: it has ended, or the network broke");
      state.textContent = "No connection to edgeopt; trying again";
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
}

async function claim() {
  if (session && (await ask(`arrived/${page}?${session}`, { method: "POST" })).ok) return;
  const response = await ask(`claim/${page}`, { method: "POST" });
  if (!response.ok) throw new Error("this address was used already; start edgeopt again for a new one");
  session = await response.text();
  sessionStorage.setItem(location.pathname, session);
}

function worker(id) {
  if (!workers.has(id)) {
    const made = new Worker("worker.js", { type: "module" });
    made.onmessage = ({ data }) => send(id, data);
    made.onerror = (event) => send(id, { ok: false, kind: "device", reason: event.message || "a Web Worker failed" });
    workers.set(id, made);
  }
  return workers.get(id);
}

// One after the other: outputs have to be there before the answer that tells of them.
function send(id, data) {
  const [place, body] = data.outputs ? ["outputs", data.outputs] : ["answer", JSON.stringify(data)];
  const number = ++posted;
  sent = sent.then(() => ask(`${place}/${id}/${number}?${session}`, { method: "POST", body })).catch(end);
}

async function main() {
  await claim();
  for (let last = 0; ; ) {
    const response = await ask(`next/${page}/${last}?${session}`);
    if (response.status === 403) throw new Error("edgeopt does not know this page any more");
    state.textContent = workers.size ? "Running" : "Waiting for edgeopt";
    if (response.status === 204) continue;
    const { number, id, message } = await response.json();
    last = number;
    if (message) worker(id).postMessage({ message, session });
    else {
      workers.get(id)?.terminate();
      workers.delete(id);
    }
  }
}

function end(error) {
  for (const made of workers.values()) made.terminate();
  state.textContent = `Ended: ${error.message}`;
}

addEventListener("pagehide", () => navigator.sendBeacon(`left/${page}?${session}`));
addEventListener("pageshow", (event) => event.persisted && location.reload());
navigator.wakeLock?.request("screen").catch(() => {}); // where it is refused, the page asks the person to keep it awake
main().catch(end);
