// Asks edgeopt for messages, hands each to a Web Worker of its own, and sends the answers back.

const state = document.getElementById("state");
const workers = new Map();
let sent = Promise.resolve();
let session = sessionStorage.getItem(location.pathname);

document.getElementById("threads").textContent = crossOriginIsolated
  ? ""
  : "This page came over plain http from another machine: browsers allow one thread then, and a coarse clock.";

async function claim() {
  if (session) return;
  const response = await fetch("claim", { method: "POST" });
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
  sent = sent.then(() => fetch(`${place}/${id}?${session}`, { method: "POST", body }));
}

async function main() {
  await claim();
  for (;;) {
    const response = await fetch(`next?${session}`);
    if (response.status === 403) throw new Error("edgeopt does not know this page any more");
    state.textContent = workers.size ? "Running" : "Waiting for edgeopt";
    if (response.status === 204) continue;
    const { id, message } = await response.json();
    if (message) worker(id).postMessage({ message, session });
    else {
      workers.get(id)?.terminate();
      workers.delete(id);
    }
  }
}

main().catch((error) => {
  for (const made of workers.values()) made.terminate();
  state.textContent = `Ended: ${error.message}`;
});
