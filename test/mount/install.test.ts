// install.sh: puts the program where it can be run from, removes exactly that, and leaves what others put there.

import { mkdir, readFile, rm, symlink, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { mountAt } from "../support/mount-table.ts";
import { ORDINARY_USER, ordinaryUserObstacle } from "../support/ordinary-user.ts";
import { createImage } from "../support/qemu.ts";
import { REPOSITORY } from "../support/repository.ts";
import { attempt, type RunResult, run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";

const INSTALL = join(REPOSITORY, "mount-scripts/install.sh");

describe("install.sh", () => {
  let home = "";
  let prefix = "";

  beforeEach(async () => {
    home = await makeScratch("install");
    prefix = join(home, ".local");
  });
  afterEach(async () => {
    await rm(home, { recursive: true, force: true });
  });

  const environment = (): Readonly<Record<string, string>> => ({
    HOME: home,
    XDG_CONFIG_HOME: join(home, ".config"),
  });
  const install = (...args: readonly string[]): Promise<RunResult> =>
    run("sh", [INSTALL, ...args], { env: environment() });

  /** All that there is, with what links lead to. */
  async function listing(): Promise<string[]> {
    const { stdout } = await run("find", [home, "-mindepth", "1", "-printf", "%y %P %l\\n"]);
    return stdout.trimEnd().split("\n").sort();
  }

  it("installs a command that runs without the repository and without node on the PATH", async () => {
    await install("--user");
    const image = join(home, "disk.qcow2");
    const target = join(home, "target");
    await createImage(image, "qcow2", { size: 2 ** 20 });
    await mkdir(target);
    const command = join(prefix, "bin/tsimgfs");
    const options = { cwd: "/", env: { PATH: "/usr/sbin:/sbin", NODE_PATH: "" } };
    const fusermount = { ...options, env: { ...options.env, PATH: "/usr/bin:/bin" } };
    expect((await run(command, ["--version"], options)).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    await run(command, ["mount", image, target], fusermount);
    expect(mountAt(target)?.type).toBe("fuse.tsimgfs");
    await run(command, ["umount", target], fusermount);
    const diff = [
      "-r",
      "--exclude=.built",
      join(REPOSITORY, "dist"),
      join(prefix, "lib/tsimgfs/dist"),
    ];
    expect((await run("diff", diff)).stdout).toBe("");
    const files = (await listing()).join("\n");
    expect(files).not.toMatch(/\.test\.|lib\/tsimgfs\/src|\.cc$|esbuild|vitest|typescript/);
  });

  it("installs man pages, and completions that the shells find by themselves", async () => {
    await install("--user");
    const env = { ...environment(), MANPATH: join(prefix, "share/man") };
    expect((await run("man", ["-w", "tsimgfs", "mount"], { env })).stdout).toMatch(
      /share\/man\/man1\/tsimgfs-mount\.1$/m,
    );
    const path = `${join(prefix, "bin")}:${process.env["PATH"]}`;
    const share = { ...environment(), XDG_DATA_HOME: join(prefix, "share"), PATH: path };
    const fish = ["-c", "complete -C'tsimgfs mou'"];
    expect((await run("fish", fish, { env: share })).stdout).toMatch(/^mount\t/);
    const bash = `. ${prefix}/share/bash-completion/completions/tsimgfs; complete -p tsimgfs`;
    expect((await run("bash", ["-c", bash])).stdout).toBe("complete -F _tsimgfs tsimgfs\n");
    const zsh = `fpath=(${prefix}/share/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -d ${home}/dump; print $_comps[tsimgfs]`;
    expect((await run("zsh", ["-f", "-c", zsh], { env: environment() })).stdout).toBe("_tsimgfs\n");
  });

  it("may be run again and again, and takes away exactly what it put there", async () => {
    await mkdir(join(prefix, "bin"), { recursive: true });
    await writeFile(join(prefix, "bin/other"), "");
    const before = await listing();
    await install("--user");
    const first = await listing();
    await install("--user");
    expect(await listing()).toEqual(first);
    await writeFile(join(prefix, "lib/tsimgfs/mine"), "");
    await install("--user", "--uninstall");
    const mine = ["d .local/lib ", "d .local/lib/tsimgfs ", "f .local/lib/tsimgfs/mine "];
    expect(await listing()).toEqual([...before, ...mine].sort());
    await rm(join(prefix, "lib"), { recursive: true });
    await install("--user", "--uninstall");
    expect(await listing()).toEqual(before);
  });

  it("works below a directory whose name has blanks, and characters beyond ASCII", async () => {
    const env = { HOME: join(home, "hömé  of me"), XDG_CONFIG_HOME: "", XDG_RUNTIME_DIR: home };
    await mkdir(env.HOME);
    const before = await listing();
    const { stdout } = await run("sh", [INSTALL, "--user"], { env });
    // What it says can be pasted into a shell.
    const [, path = ""] = /For this shell: (PATH=.*)$/m.exec(stdout) ?? [];
    const version = await run("sh", ["-c", `${path}; tsimgfs --version`]);
    expect(version.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    const unit = join(env.HOME, ".config/systemd/user/tsimgfs@.service");
    const verify = ["verify", "--user", "--man=no", unit];
    const { stderr } = await run("systemd-analyze", verify, { env });
    expect(stderr.split("\n").filter((line) => line.includes("tsimgfs"))).toEqual([]);
    await run("sh", [INSTALL, "--user", "--uninstall"], { env });
    // Of systemd-analyze.
    await rm(join(home, "systemd"), { recursive: true, force: true });
    expect(await listing()).toEqual(before);
  });

  it("does not install what is older than its sources", async () => {
    const clone = join(home, "clone");
    for (const folder of ["src", "dist/cli", "node_modules/koffi"]) {
      await mkdir(join(clone, folder), { recursive: true });
    }
    await symlink(join(REPOSITORY, "mount-scripts"), join(clone, "mount-scripts"));
    for (const name of ["package.json", "package-lock.json", "tsconfig.json", "dist/cli/main.js"]) {
      await writeFile(join(clone, name), "{}");
    }
    await utimes(join(clone, "dist/cli/main.js"), 0, 0);
    const before = await listing();
    const script = join(clone, "mount-scripts/install.sh");
    const asked = await attempt("sh", [script, "--user"], {
      env: { ...environment(), npm_config_cache: join(home, "clone/cache") },
    });
    expect(asked.status).toBe(1);
    // There is nothing that could be built.
    expect(asked.stdout).toBe("Building\n");
    expect(asked.stderr).toMatch(/install\.sh: npm run build failed/);
    await rm(join(clone, "cache"), { recursive: true, force: true });
    expect(await listing()).toEqual(before);
    if (ordinaryUserObstacle() !== undefined) return;
    const { status, stderr } = await attempt("sh", [script, "--user"], {
      env: { ...environment() },
      identity: ORDINARY_USER,
    });
    expect(status).toBe(1);
    expect(stderr).toMatch(
      /^install\.sh: \S+clone: it is not built, or has changed since, and you may not write there; [^\n]*\n$/,
    );
    expect(await listing()).toEqual(before);
  });

  it("removes what an earlier version had, and this one has not", async () => {
    await install("--user");
    const list = join(prefix, "lib/tsimgfs/installed");
    const old = join(prefix, "lib/tsimgfs/dist/old.js");
    await writeFile(old, "");
    await writeFile(list, `${await readFile(list, "utf8")}f ${old}\n`);
    await install("--user");
    expect((await listing()).join("\n")).not.toContain("old.js");
  });

  it("does not overwrite what somebody else has put there, and changes nothing then", async () => {
    await mkdir(join(prefix, "bin"), { recursive: true });
    await symlink("/bin/true", join(prefix, "bin/tsimgfs"));
    const before = await listing();
    const { status, stderr } = await attempt("sh", [INSTALL, "--user"], { env: environment() });
    expect(status).toBe(1);
    expect(stderr).toMatch(/^install\.sh: .*bin\/tsimgfs: is there already, and not of this/);
    expect(await listing()).toEqual(before);
  });

  it("removes what it has begun with if it cannot finish", async () => {
    await mkdir(join(home, ".config"));
    await writeFile(join(home, ".config/systemd"), "in the way");
    const before = await listing();
    const { status } = await attempt("sh", [INSTALL, "--user"], { env: environment() });
    expect(status).not.toBe(0);
    expect(await listing()).toEqual(before);
  });

  it.each(["--user", "--system"])("installs a unit that systemd understands: %s", async (scope) => {
    // Below DESTDIR for the system: /sbin is not touched, and the unit's paths are looked up there.
    const isUser = scope === "--user";
    const destination = isUser ? "" : home;
    await run("sh", [INSTALL, scope, "--prefix", isUser ? prefix : "/opt"], {
      env: { ...environment(), DESTDIR: destination },
    });
    const unit = isUser
      ? join(home, ".config/systemd/user/tsimgfs@.service")
      : join(home, "opt/lib/systemd/system/tsimgfs@.service");
    const text = await readFile(unit, "utf8");
    expect(text).not.toContain("@TSIMGFS@");
    const checked = join(home, "tsimgfs@.service");
    await writeFile(checked, text.replaceAll('"/opt/', `"${home}/opt/`));
    const verify = ["verify", isUser ? "--user" : "--system", "--man=no", checked];
    const { stderr } = await run("systemd-analyze", verify, {
      env: { ...environment(), XDG_RUNTIME_DIR: home },
    });
    // Units of the machine that are read along may have faults of their own.
    expect(stderr.split("\n").filter((line) => line.includes("tsimgfs"))).toEqual([]);
  });

  it.each([["--bogus"], ["--prefix"], ["--user", "--prefix", "/a`b"]])(
    "refuses %s %s %s",
    async (...args) => {
      const { status, stderr } = await attempt("sh", [INSTALL, ...args], { env: environment() });
      expect(status).toBe(1);
      expect(stderr).toMatch(/^install\.sh: [^\n]+\n$/);
      expect((await run("find", [home, "-mindepth", "1"])).stdout).toBe("");
    },
  );
});
