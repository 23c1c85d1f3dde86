/**
 * The FUSE kernel interface: structures and constants. All fields are in the byte order of the host,
 * which is little-endian on every machine that this runs on. Source: linux/fuse.h, version 7.45.
 */

import { type Field, offsetOf, sizeOf } from "../binary/struct.ts";

export const FUSE_KERNEL_VERSION = 7;
/** The newest minor version whose structures are below. */
export const FUSE_KERNEL_MINOR_VERSION = 45;

// biome-ignore format: a table reads in columns
export const IN_HEADER = [
  ["len",           0, "u32", "bytes of the whole request"],
  ["opcode",        4, "u32", "what is asked"],
  ["unique",        8, "mask64", "names the request in the reply"],
  ["nodeid",       16, "u64", "the file it is about"],
  ["uid",          24, "u32", "who asks"],
  ["gid",          28, "u32", ""],
  ["pid",          32, "u32", ""],
  ["total_extlen", 36, "u16", "extensions, in units of 8 bytes"],
  ["padding",      38, "u16", ""],
] as const satisfies readonly Field[];
export const IN_HEADER_SIZE = sizeOf(IN_HEADER);

// biome-ignore format: a table reads in columns
export const OUT_HEADER = [
  ["len",    0, "u32", "bytes of the whole reply"],
  ["error",  4, "i32", "0 or a negative errno"],
  ["unique", 8, "mask64", "of the request; 0 for notifications"],
] as const satisfies readonly Field[];
export const OUT_HEADER_SIZE = sizeOf(OUT_HEADER);

// biome-ignore format: a table reads in columns
export const INIT_IN = [
  ["major",          0, "u32", "of the kernel"],
  ["minor",          4, "u32", ""],
  ["max_readahead",  8, "u32", "bytes"],
  ["flags",         12, "u32", "FUSE_INIT_FLAGS, bits 0 to 31"],
  ["flags2",        16, "u32", "bits 32 to 63, since 7.36"],
] as const satisfies readonly Field[];

// biome-ignore format: a table reads in columns
export const INIT_OUT = [
  ["major",                 0, "u32", "of the server"],
  ["minor",                 4, "u32", ""],
  ["max_readahead",         8, "u32", "bytes"],
  ["flags",                12, "u32", "FUSE_INIT_FLAGS that are on, bits 0 to 31"],
  ["max_background",       16, "u16", "asynchronous requests at once"],
  ["congestion_threshold", 18, "u16", "of these, when the device counts as congested"],
  ["max_write",            20, "u32", "bytes of one WRITE"],
  ["time_gran",            24, "u32", "nanoseconds"],
  ["max_pages",            28, "u16", "pages of one request"],
  ["map_alignment",        30, "u16", "DAX, not used"],
  ["flags2",               32, "u32", "bits 32 to 63"],
  ["max_stack_depth",      36, "u32", "passthrough, not used"],
  ["request_timeout",      40, "u16", "seconds, not used"],
  ["unused_end",           62, "u16", "the structure has 64 bytes"],
] as const satisfies readonly Field[];

/** Flags of INIT: bit numbers. */
export const INIT_FLAG = {
  asyncRead: 0,
  atomicOTrunc: 3,
  exportSupport: 4,
  bigWrites: 5,
  doReaddirplus: 13,
  readdirplusAuto: 14,
  asyncDio: 15,
  parallelDirops: 18,
  maxPages: 22,
  explicitInvalData: 25,
  handleKillprivV2: 28,
  initExt: 30,
  directIoAllowMmap: 36,
} as const;

// biome-ignore format: a table reads in columns
export const ATTR = [
  ["ino",        0, "u64", "node id"],
  ["size",       8, "u64", "bytes"],
  ["blocks",    16, "u64", "units of 512 bytes"],
  ["atime",     24, "u64", "seconds"],
  ["mtime",     32, "u64", ""],
  ["ctime",     40, "u64", ""],
  ["atimensec", 48, "u32", ""],
  ["mtimensec", 52, "u32", ""],
  ["ctimensec", 56, "u32", ""],
  ["mode",      60, "u32", "type and permissions"],
  ["nlink",     64, "u32", ""],
  ["uid",       68, "u32", ""],
  ["gid",       72, "u32", ""],
  ["rdev",      76, "u32", ""],
  ["blksize",   80, "u32", "preferred size of reads, a power of two"],
  ["flags",     84, "u32", ""],
] as const satisfies readonly Field[];
export const ATTR_SIZE = sizeOf(ATTR);

/** `fuse_entry_out`; a `fuse_attr` follows. */
// biome-ignore format: a table reads in columns
export const ENTRY_OUT = [
  ["nodeid",            0, "u64", "0: no such entry"],
  ["generation",        8, "u64", ""],
  ["entry_valid",      16, "u64", "seconds that the name may be kept"],
  ["attr_valid",       24, "u64", "seconds that the attributes may be kept"],
  ["entry_valid_nsec", 32, "u32", ""],
  ["attr_valid_nsec",  36, "u32", ""],
] as const satisfies readonly Field[];
export const ENTRY_ATTR_OFFSET = sizeOf(ENTRY_OUT);
export const ENTRY_OUT_SIZE = ENTRY_ATTR_OFFSET + ATTR_SIZE;

/** `fuse_attr_out`; a `fuse_attr` follows. */
// biome-ignore format: a table reads in columns
export const ATTR_OUT = [
  ["attr_valid",      0, "u64", "seconds"],
  ["attr_valid_nsec", 8, "u32", ""],
  ["dummy",          12, "u32", ""],
] as const satisfies readonly Field[];
export const ATTR_OUT_ATTR_OFFSET = sizeOf(ATTR_OUT);

// biome-ignore format: a table reads in columns
export const STATX_OUT = [
  ["attr_valid",          0, "u64", "seconds"],
  ["attr_valid_nsec",     8, "u32", ""],
  ["flags",              12, "u32", ""],
  ["spare_end",          24, "u64", "reserved up to 32"],
  ["mask",               32, "u32", "what is filled in: STATX_BASIC_STATS"],
  ["blksize",            36, "u32", ""],
  ["attributes",         40, "u64", ""],
  ["nlink",              48, "u32", ""],
  ["uid",                52, "u32", ""],
  ["gid",                56, "u32", ""],
  ["mode",               60, "u16", ""],
  ["ino",                64, "u64", ""],
  ["size",               72, "u64", ""],
  ["blocks",             80, "u64", ""],
  ["attributes_mask",    88, "u64", ""],
  ["atime_sec",          96, "u64", "seconds, then nanoseconds, then reserved"],
  ["atime_nsec",        104, "u32", ""],
  ["btime_sec",         112, "u64", ""],
  ["ctime_sec",         128, "u64", ""],
  ["ctime_nsec",        136, "u32", ""],
  ["mtime_sec",         144, "u64", ""],
  ["mtime_nsec",        152, "u32", ""],
  ["end",               280, "u64", "the structure has 288 bytes"],
] as const satisfies readonly Field[];
export const STATX_BASIC_STATS = 0x7ff;

// biome-ignore format: a table reads in columns
export const OPEN_IN = [
  ["flags",      0, "u32", "of open(2)"],
  ["open_flags", 4, "u32", ""],
] as const satisfies readonly Field[];

// biome-ignore format: a table reads in columns
export const OPEN_OUT = [
  ["fh",         0, "u64", "file handle"],
  ["open_flags", 8, "u32", "FOPEN"],
  ["backing_id", 12, "u32", "passthrough, not used"],
] as const satisfies readonly Field[];

/** Flags of an OPEN reply. */
export const FOPEN = {
  directIo: 1,
  keepCache: 2,
  cacheDir: 8,
  noFlush: 32,
  parallelDirectWrites: 64,
} as const;

/** O_DIRECT, where it is not the usual 0o40000. */
const O_DIRECT_OF: Readonly<Partial<Record<string, number>>> = { arm64: 0o200000, arm: 0o200000 };
export const O_DIRECT = O_DIRECT_OF[process.arch] ?? 0o40000;

// biome-ignore format: a table reads in columns
export const RELEASE_IN = [
  ["fh", 0, "u64", "file handle"],
] as const satisfies readonly Field[];

// biome-ignore format: a table reads in columns
export const READ_IN = [
  ["fh",          0, "u64", "file handle"],
  ["offset",      8, "mask64", "bytes; of a directory, what the entry before says"],
  ["size",       16, "u32", "bytes"],
  ["read_flags", 20, "u32", ""],
  ["lock_owner", 24, "mask64", ""],
  ["flags",      32, "u32", "of open(2)"],
  ["padding",    36, "u32", ""],
] as const satisfies readonly Field[];

// biome-ignore format: a table reads in columns
export const WRITE_IN = [
  ["fh",           0, "u64", "file handle"],
  ["offset",       8, "mask64", "bytes"],
  ["size",        16, "u32", "bytes of data, which follow"],
  ["write_flags", 20, "u32", ""],
  ["lock_owner",  24, "mask64", ""],
  ["flags",       32, "u32", "of open(2)"],
  ["padding",     36, "u32", ""],
] as const satisfies readonly Field[];

// biome-ignore format: a table reads in columns
export const INTERRUPT_IN = [
  ["unique_lo", 0, "u32", "of the request whose caller was interrupted, low half"],
  ["unique_hi", 4, "u32", "and high half"],
] as const satisfies readonly Field[];

// biome-ignore format: a table reads in columns
export const WRITE_OUT = [
  ["size",    0, "u32", "bytes written"],
  ["padding", 4, "u32", ""],
] as const satisfies readonly Field[];
export const WRITE_OUT_SIZE = sizeOf(WRITE_OUT);

// biome-ignore format: a table reads in columns
export const FALLOCATE_IN = [
  ["fh",      0, "u64", "file handle"],
  ["offset",  8, "mask64", "bytes"],
  ["length", 16, "mask64", "bytes"],
  ["mode",   24, "u32", "of fallocate(2)"],
  ["padding", 28, "u32", ""],
] as const satisfies readonly Field[];

/** Modes of FALLOCATE that the kernel passes on. */
export const FALLOCATE_MODE = { keepSize: 0x01, punchHole: 0x02, zeroRange: 0x10 } as const;

// biome-ignore format: a table reads in columns
export const SETATTR_IN = [
  ["valid",  0, "u32", "SETATTR_VALID: which fields count"],
  ["fh",     8, "u64", "file handle"],
  ["size",  16, "mask64", "bytes"],
  ["mode",  68, "u32", "permissions"],
  ["uid",   76, "u32", ""],
  ["gid",   80, "u32", ""],
] as const satisfies readonly Field[];

/** Bits of SETATTR_IN.valid; the times are others. */
export const SETATTR_VALID = { mode: 1, uid: 2, gid: 4, size: 8, handle: 64 } as const;

/** Bit of WRITE_IN.write_flags: pages that were mapped, whose file handle is a guess. */
export const WRITE_CACHE = 1;

// biome-ignore format: a table reads in columns
export const LSEEK_IN = [
  ["fh",      0, "u64", "file handle"],
  ["offset",  8, "mask64", "bytes, signed"],
  ["whence", 16, "u32", "SEEK_DATA or SEEK_HOLE"],
] as const satisfies readonly Field[];
export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;

// biome-ignore format: a table reads in columns
export const LSEEK_OUT = [
  ["offset", 0, "u64", "bytes"],
] as const satisfies readonly Field[];

/** As long as FUSE_SETXATTR_EXT is not negotiated; the name with its NUL follows, then the value. */
// biome-ignore format: a table reads in columns
export const SETXATTR_IN = [
  ["size",  0, "u32", "bytes of the value"],
  ["flags", 4, "u32", "of setxattr(2)"],
] as const satisfies readonly Field[];

// biome-ignore format: a table reads in columns
export const GETXATTR_IN = [
  ["size",    0, "u32", "bytes that the caller has room for; 0 asks for the size"],
  ["padding", 4, "u32", ""],
] as const satisfies readonly Field[];

// biome-ignore format: a table reads in columns
export const GETXATTR_OUT = [
  ["size",    0, "u32", "bytes"],
  ["padding", 4, "u32", ""],
] as const satisfies readonly Field[];

/** What a notification has in place of an error. */
export const NOTIFY_INVAL_INODE = 2;

// biome-ignore format: a table reads in columns
export const NOTIFY_INVAL_INODE_OUT = [
  ["ino",  0, "u64", "node id"],
  ["off",  8, "i64", "the first byte whose cached pages are dropped; negative: only attributes are"],
  ["len", 16, "i64", "bytes; 0: up to the end"],
] as const satisfies readonly Field[];

// biome-ignore format: a table reads in columns
export const STATFS_OUT = [
  ["blocks",   0, "u64", "in units of frsize"],
  ["bfree",    8, "u64", ""],
  ["bavail",  16, "u64", ""],
  ["files",   24, "u64", ""],
  ["ffree",   32, "u64", ""],
  ["bsize",   40, "u32", "bytes; loop devices discard in this unit"],
  ["namelen", 44, "u32", "bytes of the longest name"],
  ["frsize",  48, "u32", "bytes"],
  ["padding", 52, "u32", ""],
  ["spare",   76, "u32", "the structure has 80 bytes"],
] as const satisfies readonly Field[];

/** `fuse_dirent`; the name follows, padded to 8 bytes. */
// biome-ignore format: a table reads in columns
export const DIRENT = [
  ["ino",      0, "u64", "node id"],
  ["off",      8, "u64", "where the entry after this one is"],
  ["namelen", 16, "u32", "bytes"],
  ["type",    20, "u32", "type bits of the mode, shifted right by 12"],
] as const satisfies readonly Field[];
export const DIRENT_SIZE = sizeOf(DIRENT);

export const S_IFDIR = 0o040000;
export const S_IFREG = 0o100000;

/** ioctl on a new /dev/fuse descriptor: it becomes another queue of the session of the descriptor given. */
export const FUSE_DEV_IOC_CLONE = 0x8004_e500;

/** The kernel refuses reads into less than this, bytes. */
export const FUSE_MIN_READ_BUFFER = 8192;

/** Where hot code finds fields, counted from the start of the request. */
export const REQUEST = {
  len: offsetOf(IN_HEADER, "len"),
  opcode: offsetOf(IN_HEADER, "opcode"),
  unique: offsetOf(IN_HEADER, "unique"),
  nodeid: offsetOf(IN_HEADER, "nodeid"),
  readFh: IN_HEADER_SIZE + offsetOf(READ_IN, "fh"),
  readOffset: IN_HEADER_SIZE + offsetOf(READ_IN, "offset"),
  readSize: IN_HEADER_SIZE + offsetOf(READ_IN, "size"),
  writeFh: IN_HEADER_SIZE + offsetOf(WRITE_IN, "fh"),
  writeFlags: IN_HEADER_SIZE + offsetOf(WRITE_IN, "write_flags"),
  writeOffset: IN_HEADER_SIZE + offsetOf(WRITE_IN, "offset"),
  writeSize: IN_HEADER_SIZE + offsetOf(WRITE_IN, "size"),
  writeOpenFlags: IN_HEADER_SIZE + offsetOf(WRITE_IN, "flags"),
  writeData: IN_HEADER_SIZE + sizeOf(WRITE_IN),
  lseekOffset: IN_HEADER_SIZE + offsetOf(LSEEK_IN, "offset"),
  lseekWhence: IN_HEADER_SIZE + offsetOf(LSEEK_IN, "whence"),
} as const;

export const REPLY = {
  len: offsetOf(OUT_HEADER, "len"),
  error: offsetOf(OUT_HEADER, "error"),
  unique: offsetOf(OUT_HEADER, "unique"),
  writeSize: OUT_HEADER_SIZE + offsetOf(WRITE_OUT, "size"),
} as const;
