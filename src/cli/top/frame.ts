/** One view of what all mounts do, as lines that fit a terminal. */

import { basename } from "node:path";
import { printable } from "../../errors.ts";
import { latencyText } from "../latency-text.ts";
import { sizeText } from "../size-text.ts";
import type { OperationRates } from "./rates.ts";
import type { DeviceActivity, MountActivity } from "./sampler.ts";

/** How much room there is, and what may be used. */
export interface FrameStyle {
  /** Characters of a line; lines are cut there. */
  readonly columns: number;
  /** Lines; what does not fit is left out. */
  readonly rows: number;
  readonly colors: boolean;
}

const BOLD = "\u001b[1m";
const RED = "\u001b[31m";
const DIM = "\u001b[2m";
const PLAIN = "\u001b[0m";

interface Line {
  readonly text: string;
  readonly color?: string;
}

type Cell = (rates: NonNullable<DeviceActivity["rates"]>) => string;

const operation =
  (name: string, text: (rates: OperationRates) => string): Cell =>
  ({ operations }) => {
    const rates = operations[name];
    return rates === undefined || rates["requests-per-second"] === 0 ? "-" : text(rates);
  };
const perSecond = (rates: OperationRates): string => countText(rates["requests-per-second"]);
const bytes = (rates: OperationRates): string => sizeText(Math.round(rates["bytes-per-second"]));
const p50 = (rates: OperationRates): string => latencyText(rates["latency-us"].p50);
const p99 = (rates: OperationRates): string => latencyText(rates["latency-us"].p99);

/** Columns right of the name, a second unless they say otherwise; on narrow terminals the last ones are cut off. */
// biome-ignore format: a table reads in columns
const COLUMNS: readonly (readonly [title: string, width: number, cell: Cell])[] = [
  ["READS",    7,  operation("read", perSecond)],
  ["BYTES",    9,  operation("read", bytes)],
  ["P50",      7,  operation("read", p50)],
  ["P99",      7,  operation("read", p99)],
  ["WRITES",   8,  operation("write", perSecond)],
  ["BYTES",    9,  operation("write", bytes)],
  ["P50",      7,  operation("write", p50)],
  ["P99",      7,  operation("write", p99)],
  ["FLUSHES",  8,  operation("flush", perSecond)],
  ["P99",      7,  operation("flush", p99)],
  ["ZEROED",   7,  zeroed],
  ["ERRORS",   7,  errors],
  ["COPIED",   7,  copied],
  ["CACHE",    6,  ({ "table-cache-hit-ratio": ratio }) => `${Math.floor(ratio * 100)}%`],
  ["STREAM",  22,  stream],
];
const NAME_WIDTH_MIN = 12;
const NAME_WIDTH_MAX = 28;

/** @param time of day, as text */
export function frameText(
  mounts: readonly MountActivity[],
  time: string,
  { columns, rows, colors }: FrameStyle,
): string {
  const lines = [...headLines(mounts, time), ...mounts.flatMap(mountLines)];
  const isCut = lines.length > rows;
  const shown = isCut ? lines.slice(0, Math.max(rows - 1, 0)) : lines;
  if (isCut && rows > 0) shown.push({ text: `… ${lines.length - rows + 1} more lines` });
  return shown
    .map(({ text, color }) => {
      const cut = [...text].slice(0, columns).join("").trimEnd();
      return colors && color !== undefined ? `${color}${cut}${PLAIN}` : cut;
    })
    .map((line) => `${line}\n`)
    .join("");
}

function headLines(mounts: readonly MountActivity[], time: string): Line[] {
  const devices = mounts.flatMap((mount) => mount.devices);
  const rate = (name: string): number =>
    devices.reduce(
      (sum, { rates }) => sum + (rates?.operations[name]?.["bytes-per-second"] ?? 0),
      0,
    );
  const all = `${plural(devices.length, "device")} in ${plural(mounts.length, "mount")}`;
  const sums = `read ${sizeText(Math.round(rate("read")))}/s, write ${sizeText(Math.round(rate("write")))}/s`;
  const titles = COLUMNS.map(([title, width]) => title.padStart(width)).join(" ");
  return [
    { text: `tsimgfs top  ${time}  ${all}  ${sums}` },
    { text: "" },
    { text: `${"DEVICE".padEnd(nameWidth(mounts))} ${titles}`, color: BOLD },
  ];
}

function mountLines(mount: MountActivity, _: number, all: readonly MountActivity[]): Line[] {
  const what = mount.state === "stale" ? "  (its daemon is dead)" : "";
  const title = { text: `${printable(mount.mountpoint)}${what}`, color: DIM };
  return [title, ...mount.devices.map((device) => deviceLine(device, nameWidth(all)))];
}

function deviceLine({ device, rates }: DeviceActivity, width: number): Line {
  const name = nameOf(device);
  const start = name.length > width ? `${name.slice(0, width - 1)}…` : name.padEnd(width);
  if (rates === undefined) return { text: `${start} ${"-".padStart(COLUMNS[0]?.[1] ?? 0)}` };
  const cells = COLUMNS.map(([, size, cell]) => cell(rates).padStart(size));
  const text = [start, ...cells].join(" ");
  return errors(rates) === "-" ? { text } : { text, color: RED };
}

/** Devices stand below their mount, a little to the right. */
function nameOf(device: string): string {
  return `  ${printable(basename(device))}`;
}

function nameWidth(mounts: readonly MountActivity[]): number {
  const longest = mounts.flatMap(({ devices }) =>
    devices.map(({ device }) => nameOf(device).length),
  );
  return Math.min(NAME_WIDTH_MAX, Math.max(NAME_WIDTH_MIN, ...longest));
}

function zeroed({ operations }: Parameters<Cell>[0]): string {
  const rate = ["zero", "discard"].reduce(
    (sum, name) => sum + (operations[name]?.["requests-per-second"] ?? 0),
    0,
  );
  return rate === 0 ? "-" : countText(rate);
}

function errors({ operations, "copies-failed": failed }: Parameters<Cell>[0]): string {
  const sum = Object.values(operations).reduce((total, rates) => total + rates.errors, failed);
  return sum === 0 ? "-" : String(sum);
}

function copied({ "copied-clusters-per-second": rate }: Parameters<Cell>[0]): string {
  return rate === 0 ? "-" : countText(rate);
}

/** `running 42% 210 MiB/s`. */
function stream({ stream: stats }: Parameters<Cell>[0]): string {
  if (stats === undefined || stats.state === "idle") return "-";
  const part = stats.total === 0 ? "" : ` ${Math.floor((stats.done / stats.total) * 100)}%`;
  const rate = stats.state === "running" ? ` ${sizeText(stats.rate)}/s` : "";
  return `${stats.state}${part}${rate}`;
}

function plural(count: number, word: string): string {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

/** `0.5`, `42`, `12.3k`. */
function countText(value: number): string {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)}k`;
  return value < 10 ? value.toFixed(1) : value.toFixed(0);
}
