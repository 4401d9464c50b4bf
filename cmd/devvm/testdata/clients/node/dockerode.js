// What programs do with dockerode; the argument picks one.
const assert = require("node:assert");
const { PassThrough } = require("node:stream");
const { text } = require("node:stream/consumers");
const tar = require("tar-stream");
const Docker = require("dockerode");

const docker = new Docker();

async function withContainer(command, then, options = {}) {
	const container = await docker.createContainer({ Image: "box", Cmd: command, ...options });
	try {
		return await then(container);
	} finally {
		await container.remove({ force: true });
	}
}

// streams takes a stream of both outputs apart.
async function streams(raw) {
	const out = new PassThrough(), err = new PassThrough();
	docker.modem.demuxStream(raw, out, err);
	raw.on("end", () => { out.end(); err.end(); });
	return Promise.all([text(out), text(err)]);
}

function archive(files) {
	const pack = tar.pack();
	for (const [name, content] of Object.entries(files)) {
		pack.entry({ name }, content);
	}
	pack.finalize();
	return pack;
}

const idle = ["sleep", "1000000"];
const runs = {
	async create() {
		await withContainer(["sh", "-c", "exit 42"], async (c) => {
			await c.start();
			assert.strictEqual((await c.wait()).StatusCode, 42);
			assert.strictEqual((await c.inspect()).State.Status, "exited");
		});
		await assert.rejects(docker.getContainer("nope").start(), { statusCode: 404 });
	},
	async attach() {
		await withContainer(["sh", "-c", "wc -c; echo the end >&2"], async (c) => {
			const stream = await c.attach({ stream: true, hijack: true, stdin: true, stdout: true, stderr: true });
			const result = streams(stream);
			await c.start();
			stream.end(Buffer.alloc(300000));
			assert.deepStrictEqual(await result, ["300000\n", "the end\n"]);
		}, { OpenStdin: true, StdinOnce: true, AttachStdin: true });
	},
	async exec() {
		await withContainer(idle, async (c) => {
			await c.start();
			const exec = await c.exec({ Cmd: ["sh", "-c", "cat; echo wrong >&2; exit 3"], AttachStdin: true, AttachStdout: true, AttachStderr: true });
			const stream = await exec.start({ hijack: true, stdin: true });
			const result = streams(stream);
			stream.end("hello");
			assert.deepStrictEqual(await result, ["hello", "wrong\n"]);
			assert.strictEqual((await exec.inspect()).ExitCode, 3);
		});
	},
	async archive() {
		await withContainer(["cat", "/tmp/f"], async (c) => {
			await c.putArchive(archive({ "tmp/f": "hello" }), { path: "/" });
			const extract = tar.extract(), found = [];
			extract.on("entry", async (header, stream, next) => {
				found.push(header.name, await text(stream));
				next();
			});
			const end = new Promise((resolve, reject) => extract.on("finish", resolve).on("error", reject));
			(await c.getArchive({ path: "/tmp/f" })).pipe(extract);
			await end;
			assert.deepStrictEqual(found, ["f", "hello"]);
		});
	},
	async build() {
		const stream = await docker.buildImage(archive({ Dockerfile: "FROM box\nCOPY f /f\n", f: "hello" }), { t: "built" });
		await new Promise((resolve, reject) => docker.modem.followProgress(stream, (err, lines) => {
			const failed = err || lines.find((l) => l.error);
			failed ? reject(failed) : resolve();
		}));
		const out = new PassThrough();
		const [result, container] = await docker.run("built", ["cat", "/f"], out);
		assert.strictEqual(result.StatusCode, 0);
		await container.remove();
		out.end();
		assert.match(await text(out), /hello/);
	},
	async logs() {
		await withContainer(["sh", "-c", "echo out; echo err >&2; sleep 1; echo late"], async (c) => {
			await c.start();
			const stream = await c.logs({ follow: true, stdout: true, stderr: true });
			assert.deepStrictEqual(await streams(stream), ["out\nlate\n", "err\n"]);
		});
	},
	async events() {
		const stream = await docker.getEvents({ filters: { event: ["start"] } });
		await withContainer(["true"], async (c) => {
			const seen = new Promise((resolve, reject) => {
				let got = "";
				stream.on("data", (b) => { got += b; got.includes(c.id) && resolve(); });
				stream.on("error", reject).on("end", reject);
			});
			await c.start();
			await seen;
		});
		stream.destroy();
	},
	async stats() {
		await withContainer(idle, async (c) => {
			await c.start();
			const stream = await c.stats({ stream: true });
			const got = await new Promise((resolve, reject) => stream.on("data", resolve).on("error", reject));
			stream.destroy();
			assert.ok(JSON.parse(got).memory_stats);
		});
	},
};

runs[process.argv[2]]().then(() => process.exit(0), (e) => {
	console.error(e);
	process.exit(1);
});
