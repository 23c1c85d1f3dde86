// Reads extended attributes through libc, in a process of its own: Debian's base has no program for it.

import { REPOSITORY } from "./repository.ts";
import { type Identity, run } from "./run.ts";

const READER = `
import koffi from "koffi";
const libc = koffi.load("libc.so.6");
const getxattr = libc.func("long getxattr(const char *path, const char *name, _Out_ uint8_t *value, size_t size)");
const listxattr = libc.func("long listxattr(const char *path, _Out_ uint8_t *list, size_t size)");
const [path] = process.argv.slice(1);
const fail = (call) => { throw new Error(call + ": errno " + koffi.errno()); };
const list = Buffer.alloc(65536);
const listed = listxattr(path, list, list.length);
if (listed < 0) fail("listxattr");
const result = {};
for (const name of list.toString("utf8", 0, listed).split("\\0").filter(Boolean)) {
  const value = Buffer.alloc(65536);
  let size = -1;
  let got = -2;
  // What is counted grows between the calls; a size that is wrong stays so.
  for (let attempt = 0; attempt < 5 && got !== size; attempt++) {
    size = getxattr(path, name, null, 0);
    got = getxattr(path, name, value, value.length);
    if (got < 0) fail("getxattr " + name);
  }
  if (got !== size) throw new Error(name + ": size asked " + size + ", got " + got);
  result[name] = value.toString("utf8", 0, got);
}
console.log(JSON.stringify(result));
`;

/** All extended attributes of a file, by name. */
export async function readXattrs(
  path: string,
  identity?: Identity,
): Promise<ReadonlyMap<string, string>> {
  const { stdout } = await run(
    process.execPath,
    ["--input-type=module", "--eval", READER, "--", path],
    { cwd: REPOSITORY, identity },
  );
  const values: unknown = JSON.parse(stdout);
  return new Map(
    Object.entries(values ?? {}).map(([name, value]: [string, unknown]) => [name, String(value)]),
  );
}
