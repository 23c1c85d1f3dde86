// The transport that the mounts of a test project are made with, what it lacks, and how many cases are tested with it.

import { describe, it, type TestAPI } from "vitest";
import { Random } from "./random.ts";
import { LONG } from "./scale.ts";

/** What only some transports have, and how a user notices. */
export type TransportFeature =
  /** fallocate(2): holes are punched, loop devices take discards. */
  | "fallocate"
  /** SEEK_DATA and SEEK_HOLE tell where the holes are. */
  | "seek"
  /** A regular file can be the mount point. */
  | "file-mountpoint"
  /** Files can be mapped with MAP_SHARED. */
  | "shared-mmap"
  /** Files are what requests are about, not paths: one that is gone is stale, not absent. */
  | "stale-files"
  /** --threads: requests are answered side by side. */
  | "threads";

const LACKS: Readonly<Record<string, readonly TransportFeature[]>> = {
  "dev-fuse": [],
  "fuse-native": ["fallocate", "seek", "file-mountpoint", "shared-mmap", "stale-files", "threads"],
};

const TRANSPORT = process.env["TSIMGFS_TEST_TRANSPORT"] ?? "dev-fuse";

const IS_SECOND_TRANSPORT = TRANSPORT !== "dev-fuse";

/** `tsimgfs mount`, with no option for the default transport, so that the default is what is tested. */
export const MOUNT_COMMAND: readonly string[] = IS_SECOND_TRANSPORT
  ? ["mount", "--transport", TRANSPORT]
  : ["mount"];

/** What `tsimgfs mount` says of the transport when nothing else is to be said. */
export const TRANSPORT_NOTE: RegExp = IS_SECOND_TRANSPORT
  ? /^tsimgfs: --transport fuse-native: one thread, and no fallocate[^\n]*\n$/
  : /^$/;

function lacking(): readonly TransportFeature[] {
  const lacks = LACKS[TRANSPORT];
  if (lacks === undefined)
    throw new Error(`TSIMGFS_TEST_TRANSPORT=${TRANSPORT}: no such transport`);
  return lacks;
}

/** Whether the transport has a feature. */
export function transportHas(feature: TransportFeature): boolean {
  return !lacking().includes(feature);
}

/** Options for so many I/O threads, where the transport has any. */
export function threadOptions(threads: number): readonly string[] {
  return transportHas("threads") ? ["--threads", String(threads)] : [];
}

/** Defines tests as `it` does. */
type Define = Pick<TestAPI, "each"> & ((name: string, body: () => Promise<void>) => void);

/** Defines none: what a transport lacks is not skipped, it is no subject of its tests. */
const defineNone: Define = Object.assign(() => undefined, { each: () => () => undefined });

type DefineSuite = (name: string, body: () => void) => void;

/** Defines suites as `describe` does. */
interface DefineSuites extends DefineSuite {
  skipIf(condition: boolean): DefineSuite;
}

const defineNoSuite: DefineSuites = Object.assign(() => undefined, {
  skipIf: () => () => undefined,
});

/** `it` for tests of what not all transports have. */
export function itNeeds(...features: readonly TransportFeature[]): Define {
  return features.every(transportHas) ? it : defineNone;
}

/** `describe` for suites of nothing else. */
export function describeNeeds(...features: readonly TransportFeature[]): DefineSuites {
  return features.every(transportHas) ? describe : defineNoSuite;
}

/** Another transport than the default in the quick form: what does not depend on it is tested in a few cases. */
const IS_SAMPLED = IS_SECOND_TRANSPORT && !LONG;

/** `it` for tests of what hardly depends on the transport: with another than the default, in the long form only. */
export const itMainly: Define = IS_SAMPLED ? defineNone : it;

/** `it` for tests that the transport cannot change: with one of them is enough. */
export const itOnce: Define = IS_SECOND_TRANSPORT ? defineNone : it;

/** `describe` for suites of what hardly depends on the transport. */
export const describeMainly: DefineSuites = IS_SAMPLED ? defineNoSuite : describe;

/** `describe` for suites of nothing else. */
export const describeOnce: DefineSuites = IS_SECOND_TRANSPORT ? defineNoSuite : describe;

/** How often to do the same: `count` times, but `few` times where `casesOfTransport` chooses. */
export function roundsOfTransport(count: number, few = 1): number {
  return IS_SAMPLED ? few : count;
}

/**
 * Cases for `it.each`: all of them, but in the quick form and with another transport than the default only
 * `count` of them, which the seed chooses.
 */
export function casesOfTransport<T>(
  label: string,
  cases: readonly T[],
  count: number,
): readonly T[] {
  if (!IS_SAMPLED) return cases;
  const random = new Random(`cases of ${TRANSPORT}: ${label}`);
  const rest = [...cases];
  while (rest.length > count) rest.splice(random.below(rest.length), 1);
  return rest;
}
