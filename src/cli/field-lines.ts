/** Nested values as qemu-img and qemu-io print what is specific to a format. */

import { printable } from "../errors.ts";
import type { JsonValue } from "../formats/driver.ts";

/** One line for each value, indented; lists with their indexes. */
export function fieldLines(value: JsonValue, depth: number): string[] {
  if (value === null || typeof value !== "object") return [];
  const indent = "    ".repeat(depth);
  const rows: [string, JsonValue][] = Array.isArray(value)
    ? value.map((item, index) => [`[${index}]`, item])
    : Object.entries(value).map(([name, item]) => [name.replaceAll("-", " "), item]);
  return rows.flatMap(([name, item]) =>
    item !== null && typeof item === "object"
      ? [`${indent}${name}:`, ...fieldLines(item, depth + 1)]
      : [`${indent}${name}: ${printable(String(item))}`],
  );
}
