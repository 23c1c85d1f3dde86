/** What a mounted device has done, for people: a line for each operation and each event. */

import { type JsonFields, numberIn, recordIn } from "./json-fields.ts";
import { latencyText } from "./latency-text.ts";
import { sizeText } from "./size-text.ts";

const TITLES = ["operation", "requests", "bytes", "errors", "mean", "p50", "p99", "max"] as const;
const LATENCIES = ["mean", "p50", "p99", "max"] as const;

/** The text for the field `io` of NAME.stats.json. */
export function ioTable(io: JsonFields): string {
  const operations = recordIn(io, "operations") ?? {};
  const rows = Object.keys(operations).map((name) =>
    operationCells(name, recordIn(operations, name) ?? {}),
  );
  const events = Object.keys(io)
    .filter((name) => typeof io[name] === "number")
    .map((name) => [name, eventText(name, numberIn(io, name))]);
  return `\nsince the mount\n${rightAligned([TITLES, ...rows])}\n${rightAligned(events)}`;
}

function operationCells(name: string, fields: JsonFields): readonly string[] {
  const requests = numberIn(fields, "requests");
  const latencies = recordIn(fields, "latency-us") ?? {};
  return [
    name,
    String(requests),
    sizeText(numberIn(fields, "bytes")),
    String(numberIn(fields, "errors")),
    ...LATENCIES.map((latency) =>
      requests === 0 ? "-" : latencyText(numberIn(latencies, latency)),
    ),
  ];
}

function eventText(name: string, value: number): string {
  return name.includes("bytes") ? sizeText(value) : String(value);
}

/** All columns but the first end below each other. */
function rightAligned(table: readonly (readonly string[])[]): string {
  const widths = (table[0] ?? []).map((_, column) =>
    Math.max(...table.map((row) => row[column]?.length ?? 0)),
  );
  return table
    .map((row) =>
      row.map((cell, column) =>
        column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0),
      ),
    )
    .map((cells) => `  ${cells.join("  ")}\n`)
    .join("");
}
