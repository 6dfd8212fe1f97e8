/** The newest state as this page knows it, put together from messages. */

const MAX_EVENTS = 200;
const TIER_ROWS = { 600: 600, 7200: 480, 86400: 480, 604800: 480 };

export function emptyState() {
  return {
    now: 0, skewMs: 0,
    totals: null, sites: [], map: { states: "", lent: "", used: "" }, cohorts: { names: [], of_node: [] },
    placement: {}, job_order: [], job_counts: {}, unplaced: [], jobs: new Map(), history: new Map(), events: [],
  };
}

/** Take up a message. A whole state replaces everything; the names of what changed come back. */
export function take(state, message, isWhole) {
  if (isWhole) Object.assign(state, emptyState());
  const { jobs = {}, history = {}, events = [], ...sections } = message;
  Object.assign(state, sections);
  state.skewMs = Date.now() - message.now * 1000;
  for (const [id, job] of Object.entries(jobs)) state.jobs.set(id, job);
  if (message.job_order) dropGone(state);
  for (const [span, rows] of Object.entries(history)) append(state.history, Number(span), rows);
  state.events = [...state.events, ...events].slice(-MAX_EVENTS);
  return new Set(isWhole ? Object.keys(state) : Object.keys(message));
}

function dropGone(state) {
  const shown = new Set(state.job_order);
  for (const id of state.jobs.keys()) if (!shown.has(id)) state.jobs.delete(id);
}

function append(history, span, rows) {
  history.set(span, [...(history.get(span) ?? []), ...rows].slice(-TIER_ROWS[span]));
}

/** The scheduler's time now, in Unix seconds. */
export const nowOf = (state) => (Date.now() - state.skewMs) / 1000;
