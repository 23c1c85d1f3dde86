/** Where programs of the system are looked for. */

/** They are outside an ordinary user's PATH, and of some services', which may have none. */
const USUAL_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";

/** The PATH that programs are started with: the user's, then the usual directories. */
export function searchPath(): string {
  const path = process.env["PATH"];
  // An empty element would stand for the working directory.
  return path === undefined || path === "" ? USUAL_DIRECTORIES : `${path}:${USUAL_DIRECTORIES}`;
}
