/** One tooltip for the whole page, beside the pointer or the thing that has the focus. */
import { byId } from "./dom.js";

const MARGIN = 12;

/** Show `content` beside a point of the window, on whichever side has room. */
export function showTooltip(content, x, y) {
  const tip = byId("tooltip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + MARGIN + width > innerWidth ? x - MARGIN - width : x + MARGIN;
  const top = y + MARGIN + height > innerHeight ? y - MARGIN - height : y + MARGIN;
  tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
}

export function hideTooltip() {
  byId("tooltip").hidden = true;
}
