/**
 * Every field of the statistics of a device: of NAME.stats.json, and of `tsimgfs stats --output json`. This is
 * where they are described; the command's help and native-notes/statistics.md come from here, and a test compares what
 * there is.
 */

/** One row: path from the top (`[]`: each element, `OPERATION`: each name), unit, meaning. */
export type StatsField = readonly [path: string, unit: string, meaning: string];

export interface StatsSection {
  readonly title: string;
  readonly fields: readonly StatsField[];
}

const BYTES = "bytes";

// biome-ignore format: a table reads in columns
export const STATS_FIELDS: readonly StatsSection[] = [
  { title: "The image", fields: [
    ["format",            "",     "raw, qcow2 or qed"],
    ["filename",          "",     "path of the image"],
    ["virtual-size",      BYTES,  "size of the disk"],
    ["cluster-size",      BYTES,  "of raw images 512"],
  ]},
  { title: "The image file, by what it is used for and what the host stores", fields: [
    ["alloc-info.file-size",        BYTES, "length of the file: the six classes without the overrun add up to it"],
    ["alloc-info.used-data",        BYTES, "used (refcount not 0; QED: header and what tables refer to; raw: all), stored"],
    ["alloc-info.used-zero",        BYTES, "used, but a hole of the host: reads as zeros and takes no space"],
    ["alloc-info.used-discarded",   BYTES, "used, and the host promises nothing: 0 for files and block devices"],
    ["alloc-info.used-overrun",     BYTES, "used, but past the end of the file"],
    ["alloc-info.unused-data",      BYTES, "nothing refers to it, but the host stores it"],
    ["alloc-info.unused-zero",      BYTES, "nothing refers to it, a hole of the host"],
    ["alloc-info.unused-discarded", BYTES, "as used-discarded"],
    ["alloc-info.error",            "",    "in place of the others: why they cannot be counted"],
    ["data-file.filename",          "",    "external data file, where there is one"],
    ["data-file.alloc-info.*",      BYTES, "as alloc-info; all of it is used"],
  ]},
  { title: "The disk", fields: [
    ["guest.data",         BYTES, "stored as it is; the four add up to virtual-size"],
    ["guest.zero",         BYTES, "reads as zeros for what the tables say (raw: for a hole of the host)"],
    ["guest.unallocated",  BYTES, "the backing file shows, or zeros without one"],
    ["guest.compressed",   BYTES, "stored compressed: size before compression"],
    ["guest.error",        "",    "in place of the others: why they cannot be counted"],
    ["layers[].depth",     "",    "0 is the image, 1 its backing file, and so on"],
    ["layers[].filename",  "",    "path of the layer"],
    ["layers[].bytes",     BYTES, "of the disk that this layer serves, zeros included"],
    ["no-layer",           BYTES, "of the disk that no layer has: zeros"],
  ]},
  { title: "Of a mounted image", fields: [
    ["backing-filename",                "",    "backing file, as the image names it"],
    ["read-only",                       "",    "whether the mount is"],
    ["daemon-pid",                      "",    "process that serves the mount"],
    ["backing-chain[].filename",        "",    "path of the layer, the image first"],
    ["backing-chain[].format",          "",    "its format"],
    ["backing-chain[].virtual-size",    BYTES, "size of its disk"],
    ["backing-chain[].cluster-size",    BYTES, "its cluster size"],
    ["backing-chain[].file-size",       BYTES, "length of its file"],
    ["backing-chain[].allocated-size",  BYTES, "what its file takes on the host"],
    ["reserved",                        BYTES, "kept for new clusters (qcow2: within used; QED: within unused)"],
    ["snapshots[].id",                  "",    "of an internal snapshot (qcow2); these fields are as in qemu-img info"],
    ["snapshots[].name",                "",    "its name"],
    ["snapshots[].vm-state-size",       BYTES, "of the machine's state"],
    ["snapshots[].date-sec",            "s",   "when it was made, since 1970"],
    ["snapshots[].date-nsec",           "ns",  "fraction of that"],
    ["snapshots[].vm-clock-sec",        "s",   "how long the machine had run"],
    ["snapshots[].vm-clock-nsec",       "ns",  "fraction of that"],
    ["snapshots[].icount",              "instructions", "that the machine had executed; where it is known"],
    ["stream.state",                    "",    "idle, running, paused, done or failed; of writable images with a backing file"],
    ["stream.done",                     BYTES, "of the disk, from its start, that need nothing from the backing file"],
    ["stream.total",                    BYTES, "of the disk"],
    ["stream.copied-bytes",             BYTES, "copied so far"],
    ["stream.rate",                     "bytes/s", "copied per second, lately"],
  ]},
  { title: "What has been done since the mount, snapshots included", fields: [
    ["io.opens",                          "opens",    "of the device"],
    ["io.copy-on-read-stored",            "clusters", "copied from backing files as data, by reads and by streaming"],
    ["io.copy-on-read-zero",              "clusters", "of zeros in backing files, stored as zero clusters"],
    ["io.copy-on-read-failed",            "clusters", "read, but not stored: no space, for example"],
    ["io.zero-clusters-detected",         "clusters", "of zeros that were written (whole or in part; raw: sectors) and take no data"],
    ["io.zero-bytes-detected",            BYTES,      "of such zeros"],
    ["io.punched-bytes",                  BYTES,      "of the image's files in which holes were punched"],
    ["io.table-cache-hits",               "look-ups", "of mapping tables that were in memory, in all layers"],
    ["io.table-cache-misses",             "look-ups", "that had to read a part of a table"],
    ["io.operations.OPERATION.requests",  "requests", "OPERATION: read, write, zero (fallocate ZERO_RANGE), discard (PUNCH_HOLE), allocate (mode 0), flush (fsync, O_SYNC), seek (SEEK_DATA, SEEK_HOLE)"],
    ["io.operations.OPERATION.bytes",     BYTES,      "of requests that succeeded"],
    ["io.operations.OPERATION.errors",    "requests", "that failed"],
    ["io.operations.OPERATION.latency-us.mean", "us", "time in tsimgfs, of all requests"],
    ["io.operations.OPERATION.latency-us.p50",  "us", "half of them took no longer (percentiles: within 1/8)"],
    ["io.operations.OPERATION.latency-us.p99",  "us", "99 of 100 took no longer"],
    ["io.operations.OPERATION.latency-us.max",  "us", "the longest"],
    ["io.threads[].thread",               "",         "number of the thread"],
    ["io.threads[].role",                 "",         "io, or upkeep: reserves, frees, streams"],
    ["io.threads[].*",                    "",         "as io, of this thread; only operations that it served"],
  ]},
];

const COLUMN_GAP = "  ";

/** All fields in aligned columns, with a title over each section. */
export function statsFieldsText(): string {
  const rows = STATS_FIELDS.flatMap(({ fields }) => fields);
  const width = (column: 0 | 1): number => Math.max(...rows.map((row) => row[column].length));
  const widths = [width(0), width(1)] as const;
  const sections = STATS_FIELDS.map(({ title, fields }) => {
    const lines = fields.map(([path, unit, meaning]) =>
      ["", path.padEnd(widths[0]), unit.padEnd(widths[1]), meaning].join(COLUMN_GAP),
    );
    return [`${title}:`, ...lines].join("\n");
  });
  return sections.join("\n");
}
