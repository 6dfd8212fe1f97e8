/** Numbers, durations and times of day, for people. */
import { locale } from "./strings.js";

const UNITS = { en: { s: " s", min: " min", h: " h", d: " d" }, zh: { s: " 秒", min: " 分", h: " 小时", d: " 天" } };
const units = () => (locale() === "zh-CN" ? UNITS.zh : UNITS.en);

const NUMBERS = () => (locale() === "zh-CN" ? "zh-CN" : "en"); // British English would write 1.3M as 1.3m

/** 1,204 or 12.4; large ones as 1.2M. */
export function number(value, digits = 0) {
  const compact = Math.abs(value) >= 1e6;
  return new Intl.NumberFormat(NUMBERS(), {
    maximumFractionDigits: compact ? 1 : digits, notation: compact ? "compact" : "standard",
  }).format(value);
}

/** Three significant digits, for rates and losses. */
export function figure(value) {
  if (Math.abs(value) >= 1000) return number(Math.round(value));
  return new Intl.NumberFormat(NUMBERS(), { minimumSignificantDigits: 3, maximumSignificantDigits: 3 }).format(value);
}

export const percent = (fraction) =>
  new Intl.NumberFormat(NUMBERS(), { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 }).format(fraction);

/** 0.3 s, 42 s, 5 min, 3 h 12 min, 4 d 2 h. */
export function duration(seconds) {
  const u = units();
  const s = Math.max(0, seconds);
  if (s < 9.95) return `${number(s, 1)}${u.s}`;
  if (s < 90) return `${Math.round(s)}${u.s}`;
  const minutes = Math.round(s / 60);
  if (minutes < 60) return `${minutes}${u.min}`;
  if (minutes < 2880) return join(Math.floor(minutes / 60), u.h, minutes % 60, u.min);
  const hours = Math.round(minutes / 60);
  return join(Math.floor(hours / 24), u.d, hours % 24, u.h);
}

const join = (large, largeUnit, small, smallUnit) =>
  small ? `${large}${largeUnit} ${small}${smallUnit}` : `${large}${largeUnit}`;

/** Device-hours, with a digit more while there are few. */
export const deviceHours = (hours) => number(hours, hours < 1 ? 2 : hours < 100 ? 1 : 0);

/** Time of day of Unix seconds; with the date where it is not of the last half day. */
export function clock(unixS, withSeconds = true) {
  const far = Math.abs(Date.now() / 1000 - unixS) > 43_200;
  return new Intl.DateTimeFormat(locale(), {
    hour: "2-digit", minute: "2-digit", hourCycle: "h23",
    second: withSeconds && !far ? "2-digit" : undefined,
    month: far ? "short" : undefined, day: far ? "numeric" : undefined,
  }).format(unixS * 1000);
}
