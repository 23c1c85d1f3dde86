/**
 * A header that could not be synced: the host shows it, and has dropped it. Who writes to the image next relies on what it
 * refers to; the header before must not come back when what that one refers to has been given to others, nor after
 * somebody was told that the change is done.
 */

import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { setBackingFile } from "../../src/formats/formats.ts";
import { changeRefcountWidth } from "../../src/formats/qcow2/amend/refcount-width.ts";
import { repairQcow2 } from "../../src/formats/qcow2/check/repair.ts";
import { setDataFileName } from "../../src/formats/qcow2/data-file-name.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { harmIn, qemuCheck } from "../support/check-oracle.ts";
import { type OpenDisk, openRecorded, USUAL_POLICY } from "../support/crash-engine.ts";
import { IMAGE_NAME, makeImage, mustQemuImg, mustQemuIo } from "../support/crash-images.ts";
import { DATA_FILE_NAME, type ImageRecipe } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { DamageImage } from "../support/damage-image.ts";
import { REPAIRABLE } from "../support/damage-kinds.ts";
import { tolerate } from "../support/failing-calls.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import {
  type FaultHook,
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

/** Lets an image say something else, durably. */
interface Rename {
  readonly recipe: Pick<ImageRecipe, "format" | "clusterSize" | "options">;
  change(storage: RecordingStorage): void;
  /** In what qemu-img says of the image: before, and afterwards. */
  readonly said: readonly [before: RegExp, after: RegExp];
}

function renameTo(name: string, format: "qcow2" | "qed", clusterSize: number): Rename {
  return {
    recipe: { format, clusterSize },
    change: (storage) => setBackingFile(format, storage, { name, format: "raw" }),
    said: [/^(?!.*backing file)/s, new RegExp(`^backing file: ${name}( |$)`, "m")],
  };
}

const LONG_NAME = "n".repeat(900);
const OTHER_DATA = "d".repeat(600);

const RENAMES: Readonly<Record<string, Rename>> = {
  "a backing file": renameTo("new", "qcow2", 4096),
  "a backing file behind the first sector": renameTo(LONG_NAME, "qcow2", 4096),
  "a backing file of QED": renameTo("new", "qed", 4096),
  "a backing file of QED, behind the first sector": renameTo(LONG_NAME, "qed", 4096),
  "a data file": {
    recipe: { format: "qcow2", clusterSize: 4096, options: { data_file: DATA_FILE_NAME } },
    change: (storage) => setDataFileName(storage, OTHER_DATA),
    said: [new RegExp(`data file: ${DATA_FILE_NAME}$`, "m"), new RegExp(`: ${OTHER_DATA}$`, "m")],
  },
};

/** What is left when the `failing`th sync fails; undefined: there are fewer. */
function droppedAt(path: string, { change }: Rename, failing: number): Dropped | undefined {
  const initial = SparseFile.load(path);
  const cached = initial.clone();
  const log: RecordingLog = { operations: [] };
  let [syncs, durable] = [0, 0];
  const faultOf: FaultHook = ({ kind }) => {
    if (kind !== "sync") return undefined;
    if (syncs++ === failing) return { code: "EIO", written: 0 };
    durable = log.operations.length;
    return undefined;
  };
  const error = tolerate(() => change(new RecordingStorage(path, cached, log, 0, faultOf)));
  if (error === undefined) return undefined;
  const [found] = new CrashStates([initial], log).prefix(durable);
  if (found === undefined) throw new RangeError("no image");
  return { durable: found, cached };
}

it.each(Object.entries(RENAMES))(
  "does not come back once told that there is %s",
  async (_, rename) => {
    await withMemoryScratch("dropped-name", async (root) => {
      const directory = join(root, "work");
      const path = join(directory, IMAGE_NAME);
      const random = new Random("dropped name");
      const recipe: ImageRecipe = {
        ...{ name: "dropped name", group: "special", virtualSize: MIB },
        ...rename.recipe,
      };
      mkdirSync(directory);
      await makeImage(directory, recipe, random);
      // Other names than those of files: the image is not opened.
      const saidIn = async (file: SparseFile | undefined): Promise<string> => {
        file?.save(path);
        return (await mustQemuImg(directory, ["info", "-f", recipe.format, IMAGE_NAME])).stdout;
      };
      const [before, after] = rename.said;
      expect(await saidIn(SparseFile.load(path))).toMatch(before);
      const initial = SparseFile.load(path);
      for (let failing = 0; ; failing++) {
        initial.save(path);
        const dropped = droppedAt(path, rename, failing);
        if (dropped === undefined) {
          expect(failing).toBeGreaterThan(1);
          return;
        }
        const log: RecordingLog = { operations: [] };
        rename.change(new RecordingStorage(path, dropped.cached.clone(), log, 0));
        const states = new CrashStates([dropped.durable], log);
        const label = `sync ${failing}, seed ${SEED}`;
        const last = log.operations.length;
        expect(await saidIn(states.prefix(last)[0]), label).toMatch(after);
        expect(log.operations.at(-1)?.kind, label).toBe("sync");
        for (let count = 0; count < STATES / 5; count++) {
          const position = random.between(0, last);
          const [file] = states.random(position, random.pick(STRATEGIES), random);
          const said = await saidIn(file);
          expect(before.test(said) || after.test(said), `${label}: ${said}`).toBe(true);
        }
      }
    });
  },
);
