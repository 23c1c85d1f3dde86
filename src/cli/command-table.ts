/** The commands that there are; each loads what it needs when it is chosen. */

import type { PendingDaemon } from "../daemon/launch.ts";
import type { DocumentedCommand } from "./documented-command.ts";

type Define = (command: DocumentedCommand) => void;

/** By name. */
export const COMMANDS: Readonly<
  Record<string, { summary: string; load: (daemon: PendingDaemon | undefined) => Promise<Define> }>
> = {
  mount: {
    summary: "show images as flat raw devices",
    load: async (daemon) => {
      const { defineMount } = await import("./commands/mount.ts");
      return (command) => defineMount(command, daemon);
    },
  },
  umount: {
    summary: "end a mount",
    load: async () => (await import("./commands/umount.ts")).defineUmount,
  },
  attach: {
    summary: "make an image a block device",
    load: async () => (await import("./commands/attach.ts")).defineAttach,
  },
  detach: {
    summary: "end what attach has begun",
    load: async () => (await import("./commands/detach.ts")).defineDetach,
  },
  list: {
    summary: "show the active mounts",
    load: async () => (await import("./commands/list.ts")).defineList,
  },
  info: {
    summary: "show what an image is",
    load: async () => (await import("./commands/info.ts")).defineInfo,
  },
  map: {
    summary: "show where the bytes of a disk are",
    load: async () => (await import("./commands/map.ts")).defineMap,
  },
  stats: {
    summary: "show what the bytes of an image are for",
    load: async () => (await import("./commands/stats.ts")).defineStats,
  },
  top: {
    summary: "show what all mounts do right now",
    load: async () => (await import("./commands/top.ts")).defineTop,
  },
  create: {
    summary: "make a new image",
    load: async () => (await import("./commands/create.ts")).defineCreate,
  },
  convert: {
    summary: "copy a disk into an image of any format",
    load: async () => (await import("./commands/convert.ts")).defineConvert,
  },
  compare: {
    summary: "say whether two disks are equal",
    load: async () => (await import("./commands/compare.ts")).defineCompare,
  },
  measure: {
    summary: "say how large an image will be",
    load: async () => (await import("./commands/measure.ts")).defineMeasure,
  },
  dd: {
    summary: "copy a part of a disk into a new image",
    load: async () => (await import("./commands/dd.ts")).defineDd,
  },
  bench: {
    summary: "measure how fast an image is read or written",
    load: async () => (await import("./commands/bench.ts")).defineBench,
  },
  io: {
    summary: "read and write a disk by hand",
    load: async () => (await import("./commands/io.ts")).defineIo,
  },
  snapshot: {
    summary: "list, make, apply and delete internal snapshots",
    load: async () => (await import("./commands/snapshot.ts")).defineSnapshot,
  },
  stream: {
    summary: "copy what an image lacks from its backing files",
    load: async () => (await import("./commands/stream.ts")).defineStream,
  },
  commit: {
    summary: "copy what an image has into its backing file",
    load: async () => (await import("./commands/commit.ts")).defineCommit,
  },
  rebase: {
    summary: "give an image another backing file",
    load: async () => (await import("./commands/rebase.ts")).defineRebase,
  },
  resize: {
    summary: "change the size of an image's disk",
    load: async () => (await import("./commands/resize.ts")).defineResize,
  },
  amend: {
    summary: "change the properties of an image",
    load: async () => (await import("./commands/amend.ts")).defineAmend,
  },
  bitmap: {
    summary: "add, remove and change the dirty bitmaps of an image",
    load: async () => (await import("./commands/bitmap.ts")).defineBitmap,
  },
  check: {
    summary: "find damage in an image, and repair it",
    load: async () => (await import("./commands/check.ts")).defineCheck,
  },
};
