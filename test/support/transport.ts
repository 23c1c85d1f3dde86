// The transport that the mounts of a test project are made with, and what it lacks.

import { it, type TestAPI } from "vitest";

/** What only some transports have, and how a user notices. */
export type TransportFeature =
  /** fallocate(2): holes are punched, loop devices take discards. */
  | "fallocate"
  /** SEEK_DATA and SEEK_HOLE tell where the holes are. */
  | "seek"
  /** A regular file can be the mount point. */
  | "file-mountpoint"
  /** What is read once is in the page cache of the kernel. */
  | "page-cache"
  /** Files can be mapped with MAP_SHARED. */
  | "shared-mmap"
  /** Files are what requests are about, not paths: one that is gone is stale, not absent. */
  | "stale-files"
  /** --threads. */
  | "threads";

const LACKS: Readonly<Record<string, readonly TransportFeature[]>> = {
  "dev-fuse": [],
  "fuse-native": [
    "fallocate",
    "seek",
    "file-mountpoint",
    "page-cache",
    "shared-mmap",
    "stale-files",
    "threads",
  ],
};

const TRANSPORT = process.env["TSIMGFS_TEST_TRANSPORT"] ?? "dev-fuse";

/** Another transport than the default: what does not depend on it need not be tested in all cases once more. */
export const IS_SECOND_TRANSPORT: boolean = TRANSPORT !== "dev-fuse";

/** For `tsimgfs mount`; none for the default transport, so that the default is what is tested. */
export const TRANSPORT_ARGUMENTS: readonly string[] = IS_SECOND_TRANSPORT
  ? ["--transport", TRANSPORT]
  : [];

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

/** Defines tests as `it` does. */
type Define = Pick<TestAPI, "each"> & ((name: string, body: () => Promise<void>) => void);

/** Defines none: what a transport lacks is not skipped, it is no subject of its tests. */
const defineNone: Define = Object.assign(() => undefined, { each: () => () => undefined });

/** `it` for tests of what not all transports have. */
export function itNeeds(...features: readonly TransportFeature[]): Define {
  return features.every(transportHas) ? it : defineNone;
}
