/**
 * A hostile image as a test: it is written, read by the engine and by qemu-img, and the two are compared;
 * a sample of the cases also goes through the command.
 */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { checkedTsimgfs } from "./hostile-cli.ts";
import { type EngineOptions, outcomeByEngine } from "./hostile-engine.ts";
import { mapByQemu, outcomeByQemu } from "./hostile-oracle.ts";
import { disagreement, type Outcome, type Strictness } from "./hostile-outcome.ts";
import { Watchdog } from "./hostile-watchdog.ts";
import { Random, SEED } from "./random.ts";
import { byScale } from "./scale.ts";
import { withScratch } from "./scratch.ts";

export interface HostileCase {
  readonly name: string;
  readonly format: "qcow2" | "qed" | "raw";
  /** Writes the image, and what it refers to, into an empty directory. Returns the image's path. */
  readonly write: (directory: string) => string;
  /** How much stricter than qemu-img we may be; "same" if left out. */
  readonly strictness?: Strictness | undefined;
  /** "none": qemu-img would follow the image into the network, or has a defect of its own here. */
  readonly oracle?: "qemu-img" | "none" | undefined;
  /** What must come out, besides agreement with qemu-img. */
  readonly expected?: "refused" | "open" | undefined;
  /** What the refusal must say. */
  readonly reason?: RegExp | undefined;
  readonly engine?: EngineOptions | undefined;
  /** Read this internal snapshot instead of the disk. */
  readonly snapshot?: { readonly index: number; readonly id: string } | undefined;
  /** Exit status of `info`, which opens nothing that the image refers to. */
  readonly infoStatus?: 0 | 1 | undefined;
  /**
   * "always": through the command too; else only a sample goes there, since it costs a process. "never":
   * map would look at billions of table entries, as long as qemu-img does.
   */
  readonly command?: "always" | "sample" | "never" | undefined;
}

/** Writes bytes as the image of a case. */
export function imageFile(bytes: Uint8Array, name = "image.qcow2"): HostileCase["write"] {
  return (directory) => {
    const path = join(directory, name);
    writeFileSync(path, bytes);
    return path;
  };
}

/**
 * One test per case.
 *
 * @param quickShare of how many cases one runs in the quick form; which, depends on the seed
 */
export function describeHostile(
  title: string,
  cases: readonly HostileCase[],
  quickShare = 1,
): void {
  const share = byScale(quickShare, 1);
  const chosen = cases.filter(
    ({ name }) => new Random(`choose ${title} ${name}`).below(share) === 0,
  );
  describe(title, () => {
    const watchdog = new Watchdog();
    afterAll(() => watchdog.close());
    it.each(chosen.map((hostile) => [hostile.name, hostile] as const))(
      "%s",
      async (_name, hostile) => {
        await checkHostile(hostile, watchdog);
      },
    );
  });
}

/** Checks one case. */
export async function checkHostile(hostile: HostileCase, watchdog: Watchdog): Promise<void> {
  const context = `${hostile.name} (TSIMGFS_TEST_SEED=${SEED})`;
  await withScratch("hostile", async (directory) => {
    const path = hostile.write(directory);
    const asked =
      hostile.oracle === "none"
        ? undefined
        : outcomeByQemu(path, hostile.format, hostile.snapshot?.id);
    const options = {
      format: hostile.format,
      snapshotIndex: hostile.snapshot?.index,
      ...hostile.engine,
    };
    const ours = watchdog.watch(context, () => outcomeByEngine(path, options));
    const qemus = await asked;
    if (qemus !== undefined) {
      const found = disagreement(ours, qemus, hostile.strictness ?? "same");
      if (found !== undefined) {
        throw new Error(`${context}: ${found}`);
      }
    }
    expectOutcome(ours, hostile, context);
    const { command = "sample" } = hostile;
    if (command === "always" || (command === "sample" && isSampled(hostile.name))) {
      await checkCommands(path, hostile, ours);
    }
  });
}

function expectOutcome(ours: Outcome, hostile: HostileCase, context: string): void {
  if (hostile.expected !== undefined) {
    const kind = hostile.expected;
    expect(ours, context).toMatchObject({ kind });
  }
  if (hostile.reason !== undefined) {
    expect(ours, context).toMatchObject({ reason: expect.stringMatching(hostile.reason) });
  }
}

/** A different sample with every seed; a larger one in the long form. */
function isSampled(name: string): boolean {
  return new Random(`sample ${name}`).below(byScale(12, 4)) === 0;
}

/** `info` and `map` behave, and refuse only what the engine refuses. */
async function checkCommands(path: string, hostile: HostileCase, ours: Outcome): Promise<void> {
  const policy = hostile.engine?.backingPolicy;
  const policyArgs = policy === undefined ? [] : ["--backing-policy", policy];
  const info = await checkedTsimgfs(["info", "--output", "json", "--format", hostile.format, path]);
  if (hostile.infoStatus !== undefined) {
    expect(info.status, `${hostile.name}: info: ${info.stderr}`).toBe(hostile.infoStatus);
  }
  if (info.status === 1 && hostile.snapshot === undefined) {
    expect(ours.kind, `${hostile.name}: info refuses: ${info.stderr}`).toBe("refused");
  }
  if (info.status === 0) {
    expect(() => JSON.parse(info.stdout), `${hostile.name}: info prints JSON`).not.toThrow();
  }
  if (hostile.infoStatus !== undefined) {
    await checkedTsimgfs(["info", "--backing-chain", "--format", hostile.format, path]);
  }
  const map = await checkedTsimgfs([
    "map",
    "--output",
    "json",
    "--format",
    hostile.format,
    ...policyArgs,
    path,
  ]);
  // map looks neither at snapshots, whose table may be damaged, nor at data that is encrypted.
  const isBeyondMap = ours.kind === "refused" && /snapshot|passphrase/.test(ours.reason);
  if (ours.kind === "refused" && hostile.snapshot === undefined && !isBeyondMap) {
    expect(map.status, `${hostile.name}: map of a refused image`).toBe(1);
  }
  if (map.status === 0 && hostile.oracle !== "none") {
    const byQemu = await mapByQemu(path, hostile.format);
    if (byQemu !== undefined) {
      expect(comparable(JSON.parse(map.stdout)), `${hostile.name}: map`).toEqual(
        comparable(byQemu),
      );
    }
  }
}

/** Rows of `map` without the field that QEMU 7.2 does not have yet, and its row for a disk of no bytes. */
function comparable(rows: unknown): unknown {
  if (!Array.isArray(rows)) {
    return rows;
  }
  return rows
    .filter((row: { readonly length?: unknown }) => row.length !== 0)
    .map((row: object) => ({ ...row, compressed: undefined }));
}
