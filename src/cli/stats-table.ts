/** Allocation statistics for people: aligned columns, and a bar for each class of bytes. */

import { printable } from "../errors.ts";
import { ioTable } from "./io-table.ts";
import { asRecord, type JsonFields, numberIn, recordIn } from "./json-fields.ts";
import { sizeText } from "./size-text.ts";

const BAR_WIDTH = 20;

interface Row {
  readonly name: string;
  /** Not negative. */
  readonly bytes: number;
  /** Bytes of which it is a part; undefined: of nothing. */
  readonly whole: number | undefined;
}

interface Section {
  readonly title: string;
  /** Or why there are none. */
  readonly rows: readonly Row[] | string;
}

/** Classes of the image file, as their fields are named; all but the overrun are parts of the file. */
const FILE_CLASSES = [
  "used-data",
  "used-zero",
  "used-discarded",
  "used-overrun",
  "unused-data",
  "unused-zero",
  "unused-discarded",
] as const;
const GUEST_CLASSES = ["data", "zero", "compressed", "unallocated"] as const;

/**
 * The text for one image.
 *
 * @param stats fields as the JSON of the statistics has them
 */
export function statsTable(stats: JsonFields): string {
  const size = numberIn(stats, "virtual-size");
  const head = [
    `image: ${printable(String(stats["filename"]))}`,
    `file format: ${printable(String(stats["format"]))}`,
    `virtual size: ${sizeText(size)} (${size} bytes)`,
  ];
  const dataFile = recordIn(stats, "data-file");
  const sections = [
    fileSection("image file", recordIn(stats, "alloc-info")),
    ...(dataFile === undefined
      ? []
      : [
          fileSection(
            `data file ${printable(String(dataFile["filename"]))}`,
            recordIn(dataFile, "alloc-info"),
          ),
        ]),
    guestSection(recordIn(stats, "guest")),
    ...layersSection(stats, size),
  ];
  const reserved = numberIn(stats, "reserved");
  if (reserved > 0) {
    const row = { name: "for new clusters", bytes: reserved, whole: undefined };
    sections.push({ title: "reserved", rows: [row] });
  }
  const io = recordIn(stats, "io");
  return `${head.join("\n")}\n${renderSections(sections)}${io === undefined ? "" : ioTable(io)}`;
}

function fileSection(title: string, fields: JsonFields | undefined): Section {
  if (fields === undefined) return { title, rows: "not known" };
  if (fields["error"] !== undefined) return { title, rows: String(fields["error"]) };
  const fileSize = numberIn(fields, "file-size");
  const rows = FILE_CLASSES.map((name) => ({
    name,
    bytes: numberIn(fields, name),
    whole: name === "used-overrun" ? undefined : fileSize,
  }));
  return { title: `${title}: ${sizeText(fileSize)} (${fileSize} bytes)`, rows };
}

function guestSection(fields: JsonFields | undefined): Section {
  const title = "disk, as this image has it";
  if (fields === undefined) return { title, rows: "not known" };
  if (fields["error"] !== undefined) return { title, rows: String(fields["error"]) };
  const whole = GUEST_CLASSES.reduce((sum, name) => sum + numberIn(fields, name), 0);
  const rows = GUEST_CLASSES.map((name) => ({ name, bytes: numberIn(fields, name), whole }));
  return { title, rows };
}

function layersSection(stats: JsonFields, whole: number): Section[] {
  const { layers } = stats;
  if (!Array.isArray(layers)) return [];
  const rows: Row[] = layers.map((layer: unknown) => {
    const fields = asRecord(layer) ?? {};
    const name = `${numberIn(fields, "depth")}  ${printable(String(fields["filename"]))}`;
    return { name, bytes: numberIn(fields, "bytes"), whole };
  });
  rows.push({ name: "-  no image", bytes: numberIn(stats, "no-layer"), whole });
  return [{ title: "disk, by the image that serves it", rows }];
}

function renderSections(sections: readonly Section[]): string {
  const rows = sections.flatMap((section) =>
    typeof section.rows === "string" ? [] : section.rows,
  );
  const width = (text: (row: Row) => string): number =>
    Math.max(0, ...rows.map((row) => text(row).length));
  const widths = {
    name: width(({ name }) => name),
    size: width(({ bytes }) => sizeText(bytes)),
    bytes: width(({ bytes }) => String(bytes)),
  };
  const line = (row: Row): string => {
    const columns = [
      row.name.padEnd(widths.name),
      sizeText(row.bytes).padStart(widths.size),
      String(row.bytes).padStart(widths.bytes),
      shareText(row).padStart(6),
      barText(row),
    ];
    return `  ${columns.join("  ")}`.trimEnd();
  };
  const blocks = sections.map(({ title, rows: lines }) => {
    const text = typeof lines === "string" ? [`  ${printable(lines)}`] : lines.map(line);
    return `\n${[title, ...text].join("\n")}\n`;
  });
  return blocks.join("");
}

/** `12.5%`; what is there but hardly is `<0.1%`. */
function shareText({ bytes, whole }: Row): string {
  if (whole === undefined || whole === 0) return "";
  const percent = (bytes / whole) * 100;
  return percent > 0 && percent < 0.1 ? "<0.1%" : `${percent.toFixed(1)}%`;
}

/** Never quite empty where there is something, and full only where there is nothing else. */
function barText({ bytes, whole }: Row): string {
  if (whole === undefined || bytes === 0) return "";
  const filled = bytes >= whole ? BAR_WIDTH : Math.floor((bytes / whole) * BAR_WIDTH);
  return filled === 0 ? "." : "#".repeat(filled);
}
