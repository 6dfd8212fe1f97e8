/** The live connection: the whole state on every (re)connection, then what changed. */

const SILENCE_MS = 6_000;
const FIRST_RETRY_MS = 1_000;
const LONGEST_RETRY_MS = 15_000;

/**
 * Stay connected for as long as the page is open.
 * `onState(message, isWhole)` gets every message, `onLink(state, sinceMs)` "live", "connecting", "lost" or "refused".
 */
export function connect(onState, onLink) {
  let source = null;
  let retryMs = FIRST_RETRY_MS;
  let lastMs = Date.now();
  let wasLive = false;
  let retry = null;

  function receive(event, isWhole) {
    lastMs = Date.now();
    retryMs = FIRST_RETRY_MS;
    wasLive = true;
    onState(JSON.parse(event.data), isWhole);
    onLink("live", lastMs);
  }

  function open() {
    retry = null;
    source = new EventSource("events");
    source.addEventListener("whole", (event) => receive(event, true));
    source.addEventListener("delta", (event) => receive(event, false));
    source.onerror = fail;
  }

  async function fail() {
    source.close();
    onLink(wasLive ? "lost" : "connecting", lastMs);
    if (retry) return;
    retry = setTimeout(open, retryMs);
    retryMs = Math.min(retryMs * 2, LONGEST_RETRY_MS);
    if (await isRefused()) onLink("refused", lastMs);
  }

  setInterval(() => {
    if (Date.now() - lastMs > SILENCE_MS && !retry) fail();
  }, 1_000);
  onLink("connecting", lastMs);
  open();
}

async function isRefused() {
  try {
    return (await fetch("api/state", { method: "GET", cache: "no-store" })).status === 401;
  } catch {
    return false;
  }
}
