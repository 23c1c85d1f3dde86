// The system calls of the fsx program that Node does not have.

import koffi from "koffi";

const libc = koffi.load("libc.so.6");

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MS_SYNC = 4;
const POSIX_FADV_RANDOM = 1;
const MADV_RANDOM = 1;
const PAGE_SIZE = 4096;

/** Modes of fallocate(2). */
export const FALLOCATE_MODE = { allocate: 0, punch: 0x01 | 0x02, zero: 0x10 } as const;

const fallocateCall: (fd: number, mode: number, offset: number, length: number) => number =
  libc.func("int fallocate64(int fd, int mode, int64_t offset, int64_t length)");
const lseekCall: (fd: number, offset: number, whence: number) => number = libc.func(
  "int64_t lseek64(int fd, int64_t offset, int whence)",
);
const fadviseCall: (fd: number, offset: number, length: number, advice: number) => number =
  libc.func("int posix_fadvise64(int fd, int64_t offset, int64_t length, int advice)");
const mmapCall: (
  address: number,
  length: number,
  protection: number,
  flags: number,
  fd: number,
  offset: number,
) => number = libc.func(
  "intptr_t mmap64(uintptr_t address, size_t length, int prot, int flags, int fd, int64_t offset)",
);
const madviseCall: (address: number, length: number, advice: number) => number = libc.func(
  "int madvise(uintptr_t address, size_t length, int advice)",
);
const munmapCall: (address: number, length: number) => number = libc.func(
  "int munmap(uintptr_t address, size_t length)",
);
const msyncCall: (address: number, length: number, flags: number) => number = libc.func(
  "int msync(uintptr_t address, size_t length, int flags)",
);
const copyFrom: (target: Uint8Array, source: number, length: number) => number = libc.func(
  "uintptr_t memcpy(void *target, uintptr_t source, size_t length)",
);
const copyTo: (target: number, source: Uint8Array, length: number) => number = libc.func(
  "uintptr_t memcpy(uintptr_t target, const void *source, size_t length)",
);

/** As Node reports failed calls: an error whose `code` is the errno's name. */
function check(call: string, result: number): number {
  if (result < 0) {
    const number = koffi.errno();
    const name = Object.entries(koffi.os.errno).find(([, value]) => value === number)?.[0];
    throw Object.assign(new Error(`${call}: ${name ?? number}`), { code: name ?? String(number) });
  }
  return result;
}

export function fallocate(
  fd: number,
  mode: keyof typeof FALLOCATE_MODE,
  offset: number,
  length: number,
): void {
  check(`fallocate ${mode}`, fallocateCall(fd, FALLOCATE_MODE[mode], offset, length));
}

/** The first data or hole at or after `offset`; undefined where lseek(2) says ENXIO. */
export function seek(fd: number, offset: number, to: "data" | "hole"): number | undefined {
  const result = lseekCall(fd, offset, to === "data" ? 3 : 4);
  if (result < 0 && koffi.errno() === koffi.os.errno["ENXIO"]) {
    return undefined;
  }
  return check(`lseek ${to}`, result);
}

/** Turns read-ahead off, which would cache what another process is about to write past the cache. */
export function adviseRandom(fd: number): void {
  fadviseCall(fd, 0, 0, POSIX_FADV_RANDOM);
}

/** Maps the pages around a range, calls `body` with the address of the range, and unmaps them. */
function withMapping(
  fd: number,
  range: { readonly offset: number; readonly length: number },
  protection: number,
  body: (address: number, pages: { readonly address: number; readonly length: number }) => void,
): void {
  const start = Math.floor(range.offset / PAGE_SIZE) * PAGE_SIZE;
  const length = range.offset + range.length - start;
  const address = check("mmap", mmapCall(0, length, protection, MAP_SHARED, fd, start));
  madviseCall(address, length, MADV_RANDOM); // As in adviseRandom.
  try {
    body(address + range.offset - start, { address, length });
  } finally {
    munmapCall(address, length);
  }
}

/** Reads through a mapping of the file. */
export function mapRead(fd: number, target: Uint8Array, offset: number): void {
  withMapping(fd, { offset, length: target.length }, PROT_READ, (address) => {
    copyFrom(target, address, target.length);
  });
}

/** Writes through a mapping of the file, up to msync(2). */
export function mapWrite(fd: number, source: Uint8Array, offset: number): void {
  const range = { offset, length: source.length };
  withMapping(fd, range, PROT_READ | PROT_WRITE, (address, pages) => {
    copyTo(address, source, source.length);
    check("msync", msyncCall(pages.address, pages.length, MS_SYNC));
  });
}
