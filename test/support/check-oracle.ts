/** What qemu-img check says of an image, and whether two images look alike to a guest. */

import { encryptedSource, SECRET_OBJECT } from "./encrypted-image.ts";
import { imageArguments, type OpenedFormat } from "./qemu.ts";
import { attempt, RunError, type RunResult } from "./run.ts";

/** The counts of a check, and the exit code that they make. */
export interface CheckCounts {
  readonly status: number | undefined;
  readonly leaks: number;
  readonly corruptions: number;
  readonly checkErrors: number;
  /** 0: nothing is said of it. */
  readonly imageEndOffset: number;
  readonly totalClusters: number;
  readonly allocatedClusters: number;
  readonly fragmentedClusters: number;
  readonly compressedClusters: number;
}

export interface OracleCheck {
  /** undefined: qemu-img crashed, or did not end, as some of its repairs. */
  readonly status: number | undefined;
  /** undefined: it did not get that far. */
  readonly counts: CheckCounts | undefined;
  readonly stderr: string;
}

/** As QEMU's programs are told; raw images have no check. */
export type CheckedFormat = Exclude<OpenedFormat, "raw">;

function checkArguments(path: string, format: CheckedFormat): string[] {
  return ["check", "--output", "json", ...imageArguments(path, format)];
}

/** `qemu-img check`. */
export async function qemuCheck(
  path: string,
  format: CheckedFormat = "qcow2",
): Promise<OracleCheck> {
  const result = await attempt("qemu-img", checkArguments(path, format));
  if (result.status === undefined) throw new RunError("ended by a signal", result);
  return readOutcome(result);
}

/** `qemu-img check -r`, which changes the image. */
export async function qemuRepair(
  path: string,
  mode: "leaks" | "all",
  format: CheckedFormat = "qcow2",
): Promise<OracleCheck> {
  try {
    // Some damage makes it extend the file to many terabytes, and count their clusters.
    const timeoutMs = 10_000;
    return readOutcome(
      await attempt("qemu-img", [...checkArguments(path, format), "-r", mode], { timeoutMs }),
    );
  } catch (error) {
    if (!(error instanceof RunError)) throw error;
    return { status: undefined, counts: undefined, stderr: error.message };
  }
}

function readOutcome({ status, stdout, stderr }: RunResult): OracleCheck {
  if (stdout === "") return { status, counts: undefined, stderr };
  const fields: Readonly<Record<string, unknown>> = JSON.parse(stdout);
  const field = (name: string): number => Number(fields[name] ?? 0);
  const counts: CheckCounts = {
    status,
    leaks: field("leaks"),
    corruptions: field("corruptions"),
    checkErrors: field("check-errors"),
    imageEndOffset: field("image-end-offset"),
    totalClusters: field("total-clusters"),
    allocatedClusters: field("allocated-clusters"),
    fragmentedClusters: field("fragmented-clusters"),
    compressedClusters: field("compressed-clusters"),
  };
  return { status, counts, stderr };
}

/** As `qemu-img compare`, also of what no guest may read: undefined if one cannot be read. */
export async function looksAlike(
  one: string,
  other: string,
  format: CheckedFormat = "qcow2",
): Promise<boolean | undefined> {
  const images =
    format === "encrypted qcow2"
      ? [...SECRET_OBJECT, "--image-opts", encryptedSource(one), encryptedSource(other)]
      : ["-f", format, "-F", format, one, other];
  const { status } = await attempt("qemu-img", ["compare", ...images]);
  return status === 0 ? true : status === 1 ? false : undefined;
}

/**
 * What a check found that may lose data, as lines to compare: refcounts below the references, COPIED
 * flags where the refcount is not 1, and damaged structures. Leaks are harmless, and so is a COPIED
 * flag that is missing: a writer copies a cluster that it could have kept.
 */
export function harmIn({ stderr }: OracleCheck): string[] {
  const harm: string[] = [];
  for (const line of stderr.split("\n")) {
    const cluster = /^ERROR cluster (\d+) refcount=\d+ reference=\d+$/.exec(line);
    const copied = /^ERROR OFLAG_COPIED .*_entry=([0-9a-f]+) refcount=\d+$/.exec(line);
    if (cluster !== null) harm.push(`cluster ${cluster[1]}`);
    else if (copied !== null) {
      if (copied[1]?.length === 16 && /^[89a-f]/.test(copied[1])) harm.push(`copied ${copied[1]}`);
    } else if (/^Can't get refcount/.test(line)) harm.push("unreadable refcounts");
    else if (/^ERROR/.test(line)) harm.push(line);
  }
  return harm;
}
