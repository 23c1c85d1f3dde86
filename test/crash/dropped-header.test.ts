/**
 * A header that could not be synced: the host shows it, and has dropped it. Who writes to the image next relies on what it
 * refers to; the header before must not come back when what that one refers to has been given to others.
 */

import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { changeRefcountWidth } from "../../src/formats/qcow2/amend/refcount-width.ts";
import { repairQcow2 } from "../../src/formats/qcow2/check/repair.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { harmIn, qemuCheck } from "../support/check-oracle.ts";
import { type OpenDisk, openRecorded, USUAL_POLICY } from "../support/crash-engine.ts";
import { IMAGE_NAME, makeImage, mustQemuIo } from "../support/crash-images.ts";
import type { ImageRecipe } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { DamageImage } from "../support/damage-image.ts";
import { REPAIRABLE } from "../support/damage-kinds.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import {
  type LoggedOperation,
  type RecordingLog,
  RecordingStorage,
} from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";

const STATES = byScale(10, 1000);
const MIB = 2 ** 20;
const SECTOR_SIZE = 512;
/** The field of the header. */
const REFCOUNT_TABLE_AT = 48;

interface Dropped {
  /** What is on the disk. */
  readonly durable: SparseFile;
  /** What the host shows. */
  readonly cached: SparseFile;
}

/** A repair that has written new refcounts, and the header that refers to them, and failed in the sync after that. */
function repairWithoutHeader(path: string): Dropped {
  const initial = SparseFile.load(path);
  const log: RecordingLog = { operations: [] };
  repairQcow2(new RecordingStorage(path, initial.clone(), log, 0), "all", () => undefined);
  const switched = log.operations.findIndex(
    (operation) => operation.kind === "write" && operation.offset === REFCOUNT_TABLE_AT,
  );
  const states = new CrashStates([initial], log);
  const [durable, cached] = [states.prefix(switched)[0], states.prefix(switched + 1)[0]];
  if (durable === undefined || cached === undefined) throw new RangeError("no image");
  return { durable, cached };
}

/** A sector of the header that is written in part gets to the disk as the host shows it. */
function inWholeSectors({ operations }: RecordingLog, { cached }: Dropped): RecordingLog {
  const content = cached.clone();
  return {
    operations: operations.map((operation): LoggedOperation => {
      if (operation.kind !== "write" || operation.offset >= SECTOR_SIZE) return operation;
      content.write(operation.offset, operation.data);
      return { ...operation, offset: 0, data: content.bytesAt(0, SECTOR_SIZE) };
    }),
  };
}

/** What gives free clusters to others. */
const NEXT: Readonly<Record<string, (next: NextWriter) => void>> = {
  "a write": ({ open }) => {
    const { disk, closeFiles } = open();
    const buffer = NativeBuffer.allocate(MIB);
    buffer.bytes.fill(6);
    disk.write(2 * MIB, MIB, buffer, 0);
    closeFiles();
  },
  "a snapshot": ({ open }) => {
    const { disk, closeFiles } = open();
    disk.changeSnapshots("create", "one");
    closeFiles();
  },
  "other refcounts": ({ storage }) => changeRefcountWidth(storage, 64),
};

/** Whoever uses the image next: what the host shows, recorded. */
interface NextWriter {
  open(): OpenDisk;
  readonly storage: RecordingStorage;
}

const CASES = (["0.10", "1.1"] as const)
  .flatMap((compat) => Object.keys(NEXT).map((next) => [compat, next] as const))
  // Version 2 has one width.
  .filter(([compat, next]) => compat === "1.1" || next !== "other refcounts");

it.each(CASES)("does not come back over what others got: compat %s, %s", async (compat, next) => {
  await withMemoryScratch("dropped-header", async (root) => {
    const directory = join(root, "work");
    const path = join(directory, IMAGE_NAME);
    const recipe: ImageRecipe = {
      ...{ name: "dropped", group: "special", format: "qcow2" },
      ...{ virtualSize: 4 * MIB, clusterSize: 4096, options: { compat } },
    };
    const random = new Random(`dropped ${compat} ${next}`);
    mkdirSync(directory);
    await makeImage(directory, recipe, random);
    await mustQemuIo(directory, recipe, ["write -q -P 5 0 1M"]);
    const image = new DamageImage(readFileSync(path));
    REPAIRABLE["a refcount block not aligned"]?.(image, random);
    writeFileSync(path, image.bytes);
    const before = harmIn(await qemuCheck(path, "qcow2"));
    const dropped = repairWithoutHeader(path);

    const log: RecordingLog = { operations: [] };
    const files = [dropped.cached.clone()];
    NEXT[next]?.({
      open: () => openRecorded(directory, recipe, USUAL_POLICY, files, log),
      storage: new RecordingStorage(path, dropped.cached.clone(), log, 0),
    });
    rmSync(path);

    const states = new CrashStates([dropped.durable], inWholeSectors(log, dropped));
    for (let count = 0; count < STATES; count++) {
      const position = random.between(0, log.operations.length);
      const strategy = random.pick(STRATEGIES);
      states.random(position, strategy, random)[0]?.save(path);
      const found = harmIn(await qemuCheck(path, "qcow2"));
      const label = `${strategy} at ${position} of ${log.operations.length}, seed ${SEED}`;
      expect(
        found.filter((harm) => !before.includes(harm)),
        label,
      ).toEqual([]);
    }
  });
});
