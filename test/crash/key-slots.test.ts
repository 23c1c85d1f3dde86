/**
 * Crashes of the host, kills, and failing calls at any moment of making key slots active and inactive: every slot that is active opens with
 * its passphrase, one of them at least, and what is made inactive never comes back.
 */

import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openSlot, readLuksHeader } from "../../src/formats/encryption/key-slots.ts";
import type { SlotChange } from "../../src/formats/encryption/slot-changes.ts";
import { planQcow2Amendment } from "../../src/formats/qcow2/amend/amend.ts";
import { luksPlaceOf } from "../../src/formats/qcow2/encryption.ts";
import { readQcow2Layout } from "../../src/formats/qcow2/layout.ts";
import { amendment } from "../support/amendment.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import {
  createEncryptedImage,
  encryptedArguments,
  PASSPHRASE,
} from "../support/encrypted-image.ts";
import { failEach } from "../support/failing-calls.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import {
  type FaultHook,
  type RecordingLog,
  RecordingStorage,
} from "../support/recording-storage.ts";
import { attempt } from "../support/run.ts";
import { byScale } from "../support/scale.ts";

const STATES = byScale(8, 1000);
/** One of so many states is shown to QEMU. */
const QEMU_EVERY = byScale(8, 50);
/** Calls of each change that fail in one way. */
const FAILING = byScale(2, 40);
/** Bytes of the disk, in digits: as the images of other tests, which are made once. */
const SIZE = String(4 * 2 ** 20);
const OLD = Buffer.from(PASSPHRASE);
const NEW = Buffer.from("new");
const SECRETS = { old: OLD, new: NEW };

function added(slot: number | undefined, newSecret = NEW): SlotChange {
  return { state: "active", newSecret, slot, iterTimeMs: 0 };
}

function amend(storage: RecordingStorage, keySlots: SlotChange): void {
  const plan = planQcow2Amendment(storage, amendment({ keySlots }), [OLD]);
  for (const step of plan.steps) step(storage);
}

/** What the slots that are active open with. */
function activeKeys(path: string, content: SparseFile): Map<number, "old" | "new" | "neither"> {
  const storage = new RecordingStorage(path, content, { operations: [] }, 0);
  const layout = readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: false });
  const place = luksPlaceOf(layout, path);
  const header = readLuksHeader(storage, place);
  const keys = new Map<number, "old" | "new" | "neither">();
  for (const [slot, { isActive }] of header.slots.entries()) {
    if (!isActive) continue;
    // The one that it is likely to be comes first: each try takes time.
    const candidates = slot === 0 ? (["old", "new"] as const) : (["new", "old"] as const);
    const found = candidates.find((name) => {
      return openSlot(storage, place, header, slot, SECRETS[name]) !== undefined;
    });
    keys.set(slot, found ?? "neither");
  }
  return keys;
}

interface Crashed {
  readonly file: SparseFile;
  readonly label: string;
}

type Change = readonly [
  name: string,
  before: readonly SlotChange[],
  change: SlotChange,
  /** Slots that are active whatever happens, and those that may be. */
  kept: readonly number[],
  changed: readonly number[],
];

const CASES: readonly Change[] = [
  ["one more slot", [], added(undefined), [0], [1]],
  ["a slot that lies in two sectors", [], added(6), [0], [6]],
  [
    "one slot less",
    [added(6)],
    { state: "inactive", slot: 6, oldSecret: undefined },
    ...([[0], [6]] as const),
  ],
  [
    "a passphrase that two slots have",
    [added(1), added(6)],
    { state: "inactive", slot: undefined, oldSecret: NEW },
    ...([[0], [1, 6]] as const),
  ],
  [
    "the first passphrase",
    [added(1)],
    { state: "inactive", slot: undefined, oldSecret: OLD },
    ...([[1], [0]] as const),
  ],
];

/** An image with one active key slot, and what is written to it. */
async function makeRecorded(
  path: string,
): Promise<{ storage: RecordingStorage; log: RecordingLog }> {
  const options = ["encrypt.format=luks", "encrypt.iter-time=0", "encrypt.key-secret=key"];
  await createEncryptedImage(path, options, SIZE);
  const log: RecordingLog = { operations: [] };
  return { storage: new RecordingStorage(path, SparseFile.load(path), log, 0), log };
}

/** They have all steps of the others. */
const QUICK = CASES.filter((_, index) => index % 2 === 1);

/** A slot that is added, and the first passphrase, which is taken away. */
const QUICK_FAILING = CASES.filter((_, index) => index % 3 === 1);

/** Every active slot has its key, and is one that may be active. */
function expectSlots(path: string, file: SparseFile, change: Change, label: string): void {
  const [, , , kept, changed] = change;
  const active = activeKeys(path, file);
  expect([...active.values()], label).not.toContain("neither");
  expect([...active.keys()], label).toEqual(expect.arrayContaining([...kept]));
  expect([...kept, ...changed], label).toEqual(expect.arrayContaining([...active.keys()]));
}

/** All states after one of the first operations, and random ones of what a crash may leave. */
function* crashedFiles(states: CrashStates, last: number, random: Random): Generator<Crashed> {
  for (let position = 0; position <= last; position++) {
    const [file] = states.prefix(position);
    if (file !== undefined) yield { file, label: `the first ${position} of ${last}` };
  }
  for (let number = 0; number < STATES; number++) {
    const position = random.between(0, last);
    const strategy = random.pick(STRATEGIES);
    const [file] = states.random(position, strategy, random);
    const label = `state ${number}: ${strategy} at ${position} of ${last}, seed ${SEED}`;
    if (file !== undefined) yield { file, label };
  }
}

/** @param secret one of those that must open it */
async function expectQemuOpens(
  path: string,
  file: SparseFile,
  label: string,
  secret: Buffer = OLD,
): Promise<void> {
  file.save(path);
  const image = encryptedArguments(path, secret.toString());
  const shown = await attempt("qemu-img", ["check", "-q", ...image]);
  expect(shown.status, `${label}: ${shown.stderr}`).toBe(0);
}

/** Of a slot that stays active. */
function keptSecret([, , , kept]: Change): Buffer {
  return kept.includes(0) ? OLD : NEW;
}

describe("a crash at any moment leaves every active key slot with its key", () => {
  it.each(byScale(QUICK, CASES))("%s", async (...which) => {
    const [name, before, change, , changed] = which;
    await withMemoryScratch("key-slots", async (directory) => {
      const path = join(directory, "disk.qcow2");
      const { storage, log } = await makeRecorded(path);
      for (const earlier of before) amend(storage, earlier);
      log.operations.length = 0;
      const initial = [storage.content.clone()];
      amend(storage, change);
      const states = new CrashStates(initial, log);
      const random = new Random(`key slots ${name}`);
      let number = 0;
      for (const { file, label } of crashedFiles(states, log.operations.length, random)) {
        expectSlots(path, file, which, label);
        if (number++ % QEMU_EVERY !== 0) continue;
        await expectQemuOpens(path, file, label, keptSecret(which));
      }
      const isActive = change.state === "active";
      const end = activeKeys(path, storage.content);
      for (const slot of changed) expect(end.get(slot)).toBe(isActive ? "new" : undefined);
    });
  });
});

describe("a call that fails leaves every active key slot with its key", () => {
  it.each(byScale(QUICK_FAILING, CASES))("%s", async (...which) => {
    const [name, before, change] = which;
    await withMemoryScratch("key-slots", async (directory) => {
      const path = join(directory, "disk.qcow2");
      const { storage, log } = await makeRecorded(path);
      for (const earlier of before) amend(storage, earlier);
      const initial = storage.content.clone();
      log.operations.length = 0;
      amend(storage, change);
      let file = initial;
      await failEach(
        { calls: log.operations.length, cases: FAILING, random: new Random(`failing ${name}`) },
        (faultOf: FaultHook) => {
          file = initial.clone();
          amend(new RecordingStorage(path, file, { operations: [] }, 0, faultOf), change);
        },
        async (label) => {
          expectSlots(path, file, which, label);
          await expectQemuOpens(path, file, label, keptSecret(which));
        },
      );
    });
  });
});

describe("eight key slots", () => {
  it("are all that there are, and one of them always stays", async () => {
    await withMemoryScratch("key-slots", async (directory) => {
      const path = join(directory, "disk.qcow2");
      const { storage } = await makeRecorded(path);
      for (let slot = 1; slot < 8; slot++) amend(storage, added(undefined));
      const keys = (): string[] => [...activeKeys(path, storage.content).values()];
      expect(() => amend(storage, added(undefined))).toThrow(/all key slots are active/);
      amend(storage, { state: "inactive", slot: undefined, oldSecret: NEW });
      expect(keys()).toEqual(["old"]);
      amend(storage, added(7, OLD));
      const all: SlotChange = { state: "inactive", slot: undefined, oldSecret: OLD };
      expect(() => amend(storage, all)).toThrow(/would erase all active key slots/);
      expect(keys()).toEqual(["old", "old"]);
      await expectQemuOpens(path, storage.content, "two slots");
    });
  });
});
