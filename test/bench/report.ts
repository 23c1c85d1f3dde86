/** The benchmark's result as Markdown. */

import { aimOf, READY_AIM_MS, RESIDENT_AIM_MIB } from "./aims.ts";
import { CELLS, type CellName } from "./cells.ts";
import { type Summary, summarize } from "./median.ts";
import type { ImageResult, ServerResult } from "./result.ts";
import { SERVER_NAMES, type ServerName } from "./servers.ts";

/** Others using more of the CPUs than this make the figures worthless for conclusions. */
const BUSY_LIMIT = 0.05;

export interface ReportHead {
  readonly title: string;
  /** What was measured how, one line each. */
  readonly facts: readonly string[];
  readonly serverTitles: Readonly<Record<ServerName, string>>;
}

export function renderReport(head: ReportHead, results: readonly ImageResult[]): string {
  const facts = [...head.facts, ...results.flatMap(observations)];
  return [
    `# ${head.title}`,
    "",
    ...facts.map((fact) => `- ${fact}`),
    "",
    ...cellTable(head, results),
    "",
    ...resourceTable(head, results),
    "",
  ].join("\n");
}

function observations(result: ImageResult): string[] {
  const { busyShares, cachedShare, readAheadKb } = result;
  const label = labelOf(result);
  const lines: string[] = [];
  const busy = summarize(busyShares);
  if (busy !== undefined && busy.max > BUSY_LIMIT) {
    const shares = `${percent(busy.median)}, up to ${percent(busy.max)}`;
    lines.push(`${label}: **others used ${shares} of the CPUs: too noisy to conclude from**`);
  }
  if (cachedShare < 0.99)
    lines.push(`${label}: **only ${percent(cachedShare)} of the image was in the page cache**`);
  const readAhead = [...readAheadKb].map(([server, kib]) => `${server} ${kib ?? "?"} KiB`);
  if (readAhead.length > 0) lines.push(`${label}: read-ahead ${readAhead.join(", ")}`);
  return lines;
}

/** An image can be there twice: read, and written. */
function labelOf({ image, access }: ImageResult): string {
  return access === "read-only" ? image : `${image}, written`;
}

/**
 * Median, range, and for each server compared with: its own, the ratio of the medians, the aim, and
 * whether it is met.
 */
function cellTable(head: ReportHead, results: readonly ImageResult[]): string[] {
  const present = SERVER_NAMES.filter((name) =>
    results.some(({ servers }) => servers.some((s) => s.name === name)),
  );
  const references = present.filter((name) => name !== "tsimgfs");
  const header = ["image", "cell", "unit"];
  if (present.includes("tsimgfs")) header.push(head.serverTitles.tsimgfs);
  for (const name of references) header.push(head.serverTitles[name], "ratio", "aim", "");
  const rows = results.flatMap((result) =>
    result.cells.map((cell) => cellRow(result, cell, present)),
  );
  return table(header, rows);
}

function cellRow(
  { image, servers, readAheadKb }: ImageResult,
  cell: CellName,
  present: readonly ServerName[],
): string[] {
  const { title, unit } = CELLS[cell];
  const digits = unit === "MiB/s" ? 0 : 1;
  const ours = servers.find(({ name }) => name === "tsimgfs");
  const row: string[] = [image, title, unit];
  const own = summaryOf(ours, cell);
  for (const name of present) {
    const summary = summaryOf(
      servers.find((server) => server.name === name),
      cell,
    );
    row.push(range(summary, digits));
    if (name === "tsimgfs") continue;
    const ratio = own && summary && own.median / summary.median;
    const aim = summary && aimOf(image, cell, name, readAheadKb.get("tsimgfs"));
    row.push(ratio?.toFixed(2) ?? "", aim === undefined ? "" : `≥ ${aim}`, mark(ratio, aim));
  }
  return row;
}

function mark(ratio: number | undefined, aim: number | undefined): string {
  if (ratio === undefined || aim === undefined) return "";
  return ratio >= aim ? "ok" : "**short**";
}

function resourceTable(head: ReportHead, results: readonly ImageResult[]): string[] {
  const header = ["image", "server", "mount ready, ms", "resident after the cells, MiB", ""];
  const rows = results.flatMap((result) =>
    result.servers.map(({ name, readyMs, residentMib }) => {
      const ready = summarize(readyMs);
      const within =
        ready !== undefined && ready.median <= READY_AIM_MS && residentMib <= RESIDENT_AIM_MIB;
      const verdict = name === "tsimgfs" ? (within ? "ok" : "**short**") : "";
      return [
        labelOf(result),
        head.serverTitles[name],
        range(ready, 0),
        residentMib.toFixed(0),
        verdict,
      ];
    }),
  );
  return [
    `Aims: ready within ${READY_AIM_MS} ms, resident at most ${RESIDENT_AIM_MIB} MiB.`,
    "",
    ...table(header, rows),
  ];
}

function summaryOf(server: ServerResult | undefined, cell: CellName): Summary | undefined {
  return summarize(server?.samples.get(cell) ?? []);
}

/** "median (min–max)" */
function range(summary: Summary | undefined, digits: number): string {
  if (summary === undefined) return "";
  const [median, min, max] = [summary.median, summary.min, summary.max].map((value) =>
    value.toFixed(digits),
  );
  return `${median} (${min}–${max})`;
}

function percent(share: number): string {
  return `${Math.round(share * 100)} %`;
}

function table(header: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  return [line(header), line(header.map(() => "---")), ...rows.map(line)];
}
