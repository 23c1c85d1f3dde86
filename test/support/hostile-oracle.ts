/** What qemu-img makes of a hostile image: refused, or its content with the sectors that cannot be read. */

import { closeSync, openSync, readSync, statSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { type Outcome, type RangeContent, SECTOR_SIZE } from "./hostile-outcome.ts";
import { type DeviceRange, sampledRanges, WHOLE_MAX } from "./hostile-ranges.ts";
import { QCOW2_HEADER_FIELDS } from "./qcow2-header-builder.ts";
import { QED_HEADER_FIELDS } from "./qed-builder.ts";
import { attempt, RunError, type RunResult } from "./run.ts";

/** Address space in KiB, CPU seconds, file size in KiB: hostile images are hostile to QEMU too. */
const LIMITS = "ulimit -v 4194304; ulimit -t 60; ulimit -f 65536";

/** Runs qemu-img within limits, in the image's directory (7.2 resolves data file names from there). */
function limitedQemuImg(args: readonly string[], directory: string): Promise<RunResult> {
  return attempt("sh", ["-c", `${LIMITS}; exec qemu-img "$@"`, "sh", ...args], {
    cwd: directory,
    timeoutMs: 120_000,
  });
}

/**
 * The outcome by qemu-img.
 *
 * @param format stated to qemu-img: nothing is probed
 * @param snapshotId read this internal snapshot, whole, instead of the disk
 */
export async function outcomeByQemu(
  path: string,
  format: "qcow2" | "qed" | "raw",
  snapshotId?: string,
): Promise<Outcome> {
  if (snapshotId !== undefined || statedSize(path, format) <= WHOLE_MAX) {
    const more = snapshotId === undefined ? [] : ["-l", `snapshot.id=${snapshotId}`];
    const content = await readByQemu(path, { format, range: undefined, more });
    return typeof content === "string"
      ? { kind: "refused", reason: content }
      : {
          kind: "open",
          virtualSize: content.bytes.length,
          ranges: content.bytes.length === 0 ? [] : [content],
        };
  }
  const info = await limitedQemuImg(
    ["info", "-U", "--output", "json", "-f", format, path],
    dirname(path),
  );
  if (info.status !== 0) {
    return { kind: "refused", reason: info.stderr.trim() };
  }
  const virtualSize = Number(/"virtual-size": (\d+)/.exec(info.stdout)?.[1]);
  const ranges: RangeContent[] = [];
  for (const range of sampledRanges(virtualSize)) {
    const content = await readByQemu(path, { format, range, more: [] });
    if (typeof content === "string") {
      return { kind: "refused", reason: content };
    }
    ranges.push(content);
  }
  return { kind: "open", virtualSize, ranges };
}

/** What `qemu-img map` prints as JSON, or undefined if it fails. */
export async function mapByQemu(path: string, format: string): Promise<unknown> {
  const args = ["map", "-U", "--output", "json", "-f", format, path];
  const result = await limitedQemuImg(args, dirname(path));
  return result.status === 0 ? JSON.parse(result.stdout) : undefined;
}

/** The virtual size as the header states it: decides how much to ask for. */
function statedSize(path: string, format: "qcow2" | "qed" | "raw"): number {
  if (format === "raw") {
    return statSync(path).size;
  }
  const field = format === "qcow2" ? QCOW2_HEADER_FIELDS.size : QED_HEADER_FIELDS.image_size;
  const header = Buffer.alloc(112);
  const fd = openSync(path, "r");
  readSync(fd, header, 0, header.length, 0);
  closeSync(fd);
  return Number(
    format === "qcow2"
      ? header.readBigUInt64BE(field.offset)
      : header.readBigUInt64LE(field.offset),
  );
}

/** The content of a range (all if undefined), or why qemu-img cannot open the image with what it refers to. */
async function readByQemu(
  path: string,
  what: {
    readonly format: string;
    readonly range: DeviceRange | undefined;
    readonly more: readonly string[];
  },
): Promise<RangeContent | string> {
  const { format, range } = what;
  const offset = range?.offset ?? 0;
  const output = `${path}.by-qemu`;
  const source =
    range === undefined
      ? ["-f", format, ...what.more, path]
      : [
          "--image-opts",
          `driver=raw,offset=${offset},size=${range.length},file.driver=${format},file.file.driver=file,` +
            `file.file.filename=${path.replaceAll(",", ",,")}`,
        ];
  const result = await limitedQemuImg(
    ["convert", "-U", "--salvage", "-O", "raw", ...source, output],
    dirname(path),
  );
  if (result.status === undefined) {
    throw new RunError("qemu-img ended by a signal", result);
  }
  if (result.status !== 0) {
    return result.stderr.trim();
  }
  const failedSectors = new Map<number, string>();
  for (const [, at] of result.stderr.matchAll(/error while reading offset (\d+):/g)) {
    failedSectors.set((offset + Number(at)) / SECTOR_SIZE, "qemu-img failed");
  }
  const bytes = await readFile(output);
  await rm(output);
  return { offset, bytes, failedSectors, compressedSectors: new Set() };
}
