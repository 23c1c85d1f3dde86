/**
 * A short workload on a storage that fails at one of its calls, each in turn: what was acknowledged
 * stays, nothing worse than leaks is left behind, and the next writer clears them away.
 */

import { describe, expect, it } from "vitest";
import { TsimgfsError } from "../../../src/errors.ts";
import { FAULT_WAYS, type Faults, FaultyFiles } from "../../support/faulty-files.ts";
import { Random } from "../../support/random.ts";
import { byScale, LONG } from "../../support/scale.ts";
import { DISK_KINDS, type DiskKind, GROWING_KINDS, putDisk } from "./disk-kinds.ts";
import { FaultModel, type FaultStep } from "./fault-model.ts";
import { fillingSteps, movingSteps, stepsFor } from "./fault-steps.ts";
import { type DiskFiles, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

interface Workload {
  readonly kind: DiskKind;
  readonly steps: readonly FaultStep[];
  /** Each of so many calls fails. */
  readonly stride: number;
}

/** Those that differ most in what they do come first. */
const QUICK_KINDS = [
  "a shorter backing file",
  "a snapshot",
  "clusters of 512 bytes",
  "QED over a shorter backing file",
];

const WORKLOADS: readonly Workload[] = [
  ...DISK_KINDS.filter(({ name }) => LONG || QUICK_KINDS.includes(name)).map((kind) => ({
    kind,
    steps: stepsFor(kind),
    stride: byScale(4, 1),
  })),
  {
    kind: GROWING_KINDS.l1,
    steps: movingSteps(GROWING_KINDS.l1),
    stride: byScale(2, 1),
  },
  {
    // Thousands of calls, most of them the same.
    kind: GROWING_KINDS.refcounts,
    steps: fillingSteps(GROWING_KINDS.refcounts),
    stride: byScale(2000, 97),
  },
];

/** Writes of a session, and its end. */
function runSession(
  files: DiskFiles,
  { kind, steps }: Workload,
  model: FaultModel,
  faulty: FaultyFiles,
): void {
  const disk: WritableDisk = files.open(kind.file, {
    attachFile: faulty.attach,
    policy: { growable: true },
    format: kind.file === "disk.raw" ? "raw" : undefined,
  });
  for (const step of steps) model.step(disk, step);
  model.expectAllowed(disk.read(), "before the end");
  try {
    disk.close();
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
  }
}

/** What qemu-img and the next writer find after a session. */
async function verify(files: DiskFiles, kind: DiskKind, model: FaultModel): Promise<void> {
  const { file, qed } = kind;
  const isRaw = file === "disk.raw";
  if (!isRaw) await files.check(file);
  const options = { format: isRaw ? ("raw" as const) : undefined };
  const shown = files.use(file, (disk) => disk.read(), options);
  model.expectAllowed(shown, "opened again");
  // Where nobody knows whether a table of QED refers to a cluster, it stays, unless it is the last one.
  if (qed !== undefined) await files.check(file);
  else if (!isRaw) await files.expectClean(file);
  expect((await files.converted(file)).equals(shown), "as qemu-img reads it").toBe(true);
}

describe.each(WORKLOADS)("a disk with $kind.name on a failing storage", (workload) => {
  const { kind } = workload;

  it("needs no more than works: the workload itself", async () => {
    await withDiskFiles(async (files) => {
      const model = new FaultModel(putDisk(files, kind));
      const session = new FaultyFiles();
      runSession(files, workload, model, session);
      expect(session.calls.length).toBeGreaterThan(10);
      expect(model.sizes.size).toBe(0);
      if (kind.file !== "disk.raw") await files.expectClean(kind.file);
      await verify(files, kind, model);
    });
  });

  it.each(FAULT_WAYS)(
    "stays whole when a call fails $name",
    async ({ faults }) => {
      await withDiskFiles(async (files) => {
        const dry = new FaultModel(putDisk(files, kind));
        const works = new FaultyFiles();
        runSession(files, workload, dry, works);
        const { length } = works.calls;
        const { stride } = workload;
        const problems: string[] = [];
        for (let n = new Random(kind.name).below(stride); n < length; n += stride) {
          const model = new FaultModel(putDisk(files, kind));
          const session = new FaultyFiles(faults(n));
          try {
            runSession(files, workload, model, session);
            await verify(files, kind, model);
          } catch (error) {
            const call = session.calls[n];
            const what = `${call?.kind} 0x${call?.offset.toString(16)}+${call?.length}`;
            problems.push(`call ${n} of ${length} (${what}): ${String(error).slice(0, 600)}`);
          }
        }
        expect(problems).toEqual([]);
      });
    },
    600_000,
  );
});

describe.each([
  { kind: GROWING_KINDS.l1, steps: movingSteps(GROWING_KINDS.l1), stride: 1 },
  {
    kind: GROWING_KINDS.refcounts,
    steps: fillingSteps(GROWING_KINDS.refcounts),
    stride: byScale(20, 1),
  },
])("a disk with $kind.name whose host cannot say once what is durable", (workload) => {
  it("never says again that it is", async () => {
    await withDiskFiles(async (files) => {
      const { kind, stride } = workload;
      const works = new FaultyFiles();
      runSession(files, workload, new FaultModel(putDisk(files, kind)), works);
      const syncs = works.calls.filter((call) => call.kind === "sync").length;
      for (let n = new Random(kind.name).below(stride); n < syncs; n += stride) {
        const model = new FaultModel(putDisk(files, kind));
        let left = n;
        const fails: Faults = (call) =>
          call.kind === "sync" && left-- === 0 ? { code: "EIO" } : "works";
        const disk = files.open(kind.file, {
          attachFile: new FaultyFiles(fails).attach,
          policy: { growable: true },
        });
        const flushed = workload.steps.filter((step) => {
          const isDone = model.step(disk, step);
          return step.kind === "flush" && isDone && left < 0;
        });
        const hasFailed = left < 0;
        try {
          disk.close();
          // The one that fails is that of the end.
          expect(hasFailed, `sync ${n} of ${syncs}: closed orderly`).toBe(false);
        } catch (error) {
          if (!(error instanceof TsimgfsError)) throw error;
        }
        expect(flushed, `sync ${n} of ${syncs}`).toEqual([]);
        await verify(files, kind, model);
      }
    });
  }, 600_000);
});
