/**
 * libc through koffi: one typed function per call, its C prototype beside it. A failed call returns
 * -1 and `errno()` tells why. Addresses are plain numbers (NativeBuffer has them). The functions are
 * constants of the module, so that the hot paths call them directly.
 */

import { koffi } from "./koffi.ts";

const libc = koffi.load("libc.so.6");

type Read = (fd: number, address: number, count: number) => number;
type Pread = (fd: number, address: number, count: number, offset: number) => number;

/** ssize_t read(int fd, void *buf, size_t count) */
export const read: Read = libc.func("int64_t read(int fd, uintptr_t buf, size_t count)");

/** ssize_t write(int fd, const void *buf, size_t count) */
export const write: Read = libc.func("int64_t write(int fd, uintptr_t buf, size_t count)");

/** ssize_t pread64(int fd, void *buf, size_t count, off64_t offset) */
export const pread: Pread = libc.func(
  "int64_t pread64(int fd, uintptr_t buf, size_t count, int64_t offset)",
);

/** ssize_t pwrite64(int fd, const void *buf, size_t count, off64_t offset) */
export const pwrite: Pread = libc.func(
  "int64_t pwrite64(int fd, uintptr_t buf, size_t count, int64_t offset)",
);

/** ssize_t copy_file_range(int fd_in, off64_t *off_in, int fd_out, off64_t *off_out, size_t len, unsigned int flags) */
export const copyFileRange: (
  source: number,
  sourceOffsetAddress: number,
  target: number,
  targetOffsetAddress: number,
  length: number,
  flags: number,
) => number = libc.func(
  "int64_t copy_file_range(int in, uintptr_t off_in, int out, uintptr_t off_out, size_t len, unsigned int flags)",
);

/** int fdatasync(int fd) */
export const fdatasync: (fd: number) => number = libc.func("int fdatasync(int fd)");

/** int sync_file_range(int fd, off64_t offset, off64_t nbytes, unsigned int flags) */
export const syncFileRange: (fd: number, offset: number, length: number, flags: number) => number =
  libc.func("int sync_file_range(int fd, int64_t offset, int64_t nbytes, unsigned int flags)");

/** int ftruncate64(int fd, off64_t length) */
export const ftruncate: (fd: number, length: number) => number = libc.func(
  "int ftruncate64(int fd, int64_t length)",
);

/** int fallocate64(int fd, int mode, off64_t offset, off64_t length) */
export const fallocate: (fd: number, mode: number, offset: number, length: number) => number =
  libc.func("int fallocate64(int fd, int mode, int64_t offset, int64_t length)");

/** int memcmp(const void *a, const void *b, size_t count) */
export const memcmp: (a: number, b: number, count: number) => number = libc.func(
  "int memcmp(uintptr_t a, uintptr_t b, size_t count)",
);

/** off64_t lseek64(int fd, off64_t offset, int whence) */
export const lseek: (fd: number, offset: number, whence: number) => number = libc.func(
  "int64_t lseek64(int fd, int64_t offset, int whence)",
);

/** int ioctl(int fd, unsigned long request, void *argument) */
export const ioctl: (fd: number, request: number, address: number) => number = libc.func(
  "int ioctl(int fd, unsigned long request, uintptr_t argument)",
);

/** int poll(struct pollfd *fds, nfds_t count, int timeout) */
export const poll: (address: number, count: number, timeoutMs: number) => number = libc.func(
  "int poll(uintptr_t fds, unsigned long count, int timeout)",
);

/** int fcntl(int fd, int command, void *argument) */
export const fcntlPointer: (fd: number, command: number, address: number) => number = libc.func(
  "int fcntl(int fd, int command, uintptr_t argument)",
);

/** int memfd_create(const char *name, unsigned int flags) */
export const memfdCreate: (name: string, flags: number) => number = libc.func(
  "int memfd_create(const char *name, unsigned int flags)",
);

/** int dup(int fd) */
export const dup: (fd: number) => number = libc.func("int dup(int fd)");

/** int dup2(int fd, int target) */
export const dup2: (fd: number, target: number) => number = libc.func(
  "int dup2(int fd, int target)",
);

/** int socketpair(int domain, int type, int protocol, int sv[2]) */
export const socketpair: (
  domain: number,
  type: number,
  protocol: number,
  address: number,
) => number = libc.func("int socketpair(int domain, int type, int protocol, uintptr_t sv)");

/** ssize_t recvmsg(int fd, struct msghdr *message, int flags) */
export const recvmsg: (fd: number, address: number, flags: number) => number = libc.func(
  "int64_t recvmsg(int fd, uintptr_t message, int flags)",
);

/** int prctl(int option, unsigned long arg2, ...) */
export const prctl: (
  option: number,
  arg2: number,
  arg3: number,
  arg4: number,
  arg5: number,
) => number = libc.func(
  "int prctl(int option, unsigned long a2, unsigned long a3, unsigned long a4, unsigned long a5)",
);

/** sighandler_t signal(int number, sighandler_t handler) */
export const signal: (number: number, handlerAddress: number) => number = libc.func(
  "uintptr_t signal(int number, uintptr_t handler)",
);

/** ssize_t getxattr(const char *path, const char *name, void *value, size_t size) */
export const getxattr: (path: string, name: string, address: number, size: number) => number =
  libc.func("int64_t getxattr(const char *path, const char *name, uintptr_t value, size_t size)");

/** int setxattr(const char *path, const char *name, const void *value, size_t size, int flags) */
export const setxattr: (
  path: string,
  name: string,
  address: number,
  size: number,
  flags: number,
) => number = libc.func(
  "int setxattr(const char *path, const char *name, uintptr_t value, size_t size, int flags)",
);

/** char *strerror(int number) */
export const strerror: (number: number) => string = libc.func("const char *strerror(int number)");

/** void _exit(int status): at once; no thread goes on, nothing is flushed */
export const exitProcess: (status: number) => void = libc.func("void _exit(int status)");

/** errno of the last call that this thread made through koffi. */
export function errno(): number {
  return koffi.errno();
}
