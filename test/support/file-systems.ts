/** Real file systems that tests make on devices, and how each is mounted by readers and checked. */

const MIB = 2 ** 20;

export interface FileSystem {
  readonly name: string;
  /** Bytes: what mkfs takes, and some room. */
  readonly size: number;
  readonly mkfs: readonly string[];
  /** Mount options of a reader. */
  readonly readOnly: string;
  /** A check of the file system that writes nothing. */
  readonly fsck: readonly string[];
}

export const FILE_SYSTEMS: readonly FileSystem[] = [
  {
    name: "ext4",
    size: 96 * MIB,
    // Else the kernel goes on writing after mkfs.
    mkfs: ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0"],
    readOnly: "ro",
    fsck: ["fsck.ext4", "-f", "-n"],
  },
  {
    name: "xfs",
    size: 320 * MIB,
    mkfs: ["mkfs.xfs", "-q", "-f"],
    readOnly: "ro,norecovery",
    fsck: ["xfs_repair", "-n"],
  },
  {
    name: "btrfs",
    size: 160 * MIB,
    mkfs: ["mkfs.btrfs", "-q", "-f"],
    readOnly: "ro",
    fsck: ["btrfs", "check", "--readonly"],
  },
];

/** How a loop device is set up: options of losetup. */
export const LOOP_KINDS = [
  { how: "buffered", losetup: [] },
  { how: "direct I/O", losetup: ["--direct-io=on"] },
] as const;
