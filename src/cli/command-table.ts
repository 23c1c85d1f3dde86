/** The commands that there are; each loads what it needs when it is chosen. */

import type { PendingDaemon } from "../daemon/launch.ts";
import type { DocumentedCommand } from "./documented-command.ts";

type Define = (command: DocumentedCommand) => void;

interface CommandRow {
  readonly summary: string;
  /** The heading that the list of all commands has it under. */
  readonly group: CommandGroup;
  /** It is none for every day, and only named where there is no room for all. */
  readonly isMinor?: true;
  readonly load: (daemon: PendingDaemon | undefined) => Promise<Define>;
}

export type CommandGroup =
  | "Mounts:"
  | "Look into images:"
  | "Make images:"
  | "Change images:"
  | "Other:";

/** By name; a group stands together. */
export const COMMANDS: Readonly<Record<string, CommandRow>> = {
  mount: {
    summary: "show images as flat raw devices",
    group: "Mounts:",
    load: async (daemon) => {
      const { defineMount } = await import("./commands/mount.ts");
      return (command) => defineMount(command, daemon);
    },
  },
  umount: {
    summary: "unmount images",
    group: "Mounts:",
    load: async () => (await import("./commands/umount.ts")).defineUmount,
  },
  list: {
    summary: "list the active mounts",
    group: "Mounts:",
    load: async () => (await import("./commands/list.ts")).defineList,
  },
  top: {
    summary: "show what all mounts are doing",
    group: "Mounts:",
    isMinor: true,
    load: async () => (await import("./commands/top.ts")).defineTop,
  },
  attach: {
    summary: "attach an image as a block device",
    group: "Mounts:",
    load: async () => (await import("./commands/attach.ts")).defineAttach,
  },
  detach: {
    summary: "undo attach",
    group: "Mounts:",
    isMinor: true,
    load: async () => (await import("./commands/detach.ts")).defineDetach,
  },
  info: {
    summary: "show the format, sizes and snapshots of an image",
    group: "Look into images:",
    load: async () => (await import("./commands/info.ts")).defineInfo,
  },
  map: {
    summary: "show where the bytes of a disk are",
    group: "Look into images:",
    load: async () => (await import("./commands/map.ts")).defineMap,
  },
  stats: {
    summary: "show what the bytes of an image are for",
    group: "Look into images:",
    isMinor: true,
    load: async () => (await import("./commands/stats.ts")).defineStats,
  },
  check: {
    summary: "check an image for damage, and repair it",
    group: "Look into images:",
    load: async () => (await import("./commands/check.ts")).defineCheck,
  },
  compare: {
    summary: "compare the disks of two images",
    group: "Look into images:",
    isMinor: true,
    load: async () => (await import("./commands/compare.ts")).defineCompare,
  },
  measure: {
    summary: "compute how large an image will be",
    group: "Look into images:",
    isMinor: true,
    load: async () => (await import("./commands/measure.ts")).defineMeasure,
  },
  create: {
    summary: "create a new image",
    group: "Make images:",
    load: async () => (await import("./commands/create.ts")).defineCreate,
  },
  convert: {
    summary: "copy a disk into an image of any format",
    group: "Make images:",
    load: async () => (await import("./commands/convert.ts")).defineConvert,
  },
  dd: {
    summary: "copy part of a disk into a new image",
    group: "Make images:",
    isMinor: true,
    load: async () => (await import("./commands/dd.ts")).defineDd,
  },
  snapshot: {
    summary: "list, create, apply and delete internal snapshots",
    group: "Change images:",
    isMinor: true,
    load: async () => (await import("./commands/snapshot.ts")).defineSnapshot,
  },
  stream: {
    summary: "make an image independent of its backing files",
    group: "Change images:",
    isMinor: true,
    load: async () => (await import("./commands/stream.ts")).defineStream,
  },
  commit: {
    summary: "copy the data of an image into its backing file",
    group: "Change images:",
    isMinor: true,
    load: async () => (await import("./commands/commit.ts")).defineCommit,
  },
  rebase: {
    summary: "give an image another backing file",
    group: "Change images:",
    isMinor: true,
    load: async () => (await import("./commands/rebase.ts")).defineRebase,
  },
  resize: {
    summary: "resize the disk of an image",
    group: "Change images:",
    isMinor: true,
    load: async () => (await import("./commands/resize.ts")).defineResize,
  },
  amend: {
    summary: "change the properties of an image",
    group: "Change images:",
    isMinor: true,
    load: async () => (await import("./commands/amend.ts")).defineAmend,
  },
  bitmap: {
    summary: "manage the persistent dirty bitmaps of an image",
    group: "Change images:",
    isMinor: true,
    load: async () => (await import("./commands/bitmap.ts")).defineBitmap,
  },
  io: {
    summary: "read and write a disk by hand",
    group: "Other:",
    isMinor: true,
    load: async () => (await import("./commands/io.ts")).defineIo,
  },
  bench: {
    summary: "measure how fast an image is read or written",
    group: "Other:",
    isMinor: true,
    load: async () => (await import("./commands/bench.ts")).defineBench,
  },
};
