"""The words of the report in other languages; English is the key, so what is not translated is shown in English."""

from __future__ import annotations

from collections.abc import Callable

from burnish.errors import RecipeError, nearest, shown
from burnish.measure.verdict import ACCURACY, Verdict, chance, percent

Say = Callable[[str], str]
LANGUAGES = ("en", "zh")

CHINESE = {
    "burnish report": "burnish 报告",
    "data": "数据",
    "model": "模型",
    "Made by burnish %(version)s. This page is complete in itself: it loads nothing and sends nothing.": (
        "由 burnish %(version)s 生成。本页自成一体：不加载、不发送任何内容。"
    ),
    "Verdict": "结论",
    "%(n)s points": "%(n)s 个百分点",
    "%(low)s to %(high)s": "%(low)s 至 %(high)s",
    "Accuracy": "准确率",
    "Mean average precision (mAP)": "平均精度均值（mAP）",
    "%(score)s with its 95 %% interval, n = %(n)s test images that were looked at once, after every choice was made.": (
        "%(score)s及其 95 %% 区间，n = %(n)s 张测试图像；所有选择做完之后才看过一次。"
    ),
    "Kept for use: the frozen probe (%(name)s), chosen without the test images.": (
        "保留使用：冻结骨干的探针（%(name)s），选择时未使用测试图像。"
    ),
    "Kept for use: the fine-tuned model (%(name)s), chosen without the test images.": (
        "保留使用：微调后的模型（%(name)s），选择时未使用测试图像。"
    ),
    "The run took %(seconds)s of a budget of %(budget)s.": "本次运行用时 %(seconds)s，预算为 %(budget)s。",
    "The run took %(seconds)s.": "本次运行用时 %(seconds)s。",
    "Scores": "得分",
    "Score on the test images": "测试图像上的得分",
    "Frozen probe": "冻结探针",
    "Fine-tuned": "微调后",
    "Commonest class": "最常见类别",
    "Trained from scratch": "从零训练",
    "Against simpler answers, on the same images": "与更简单的做法比较（同一批图像）",
    "Baselines": "基线",
    "Baseline": "基线",
    "The kept model has over it": "保留模型高出（百分点）",
    "The same training from other seeds": "换随机种子重复训练",
    "Trained %(n)s times on the same splits with other seeds, the tuned model reached %(mean)s on average, with a standard "
    "deviation of %(sd)s between trainings (the interval above is that of the test images).": (
        "在相同划分上用不同种子训练 %(n)s 次，微调模型平均达到 %(mean)s，各次训练之间的标准差为 %(sd)s"
        "（上面的区间来自测试图像的抽样）。"
    ),
    "seed %(seed)s: %(accuracy)s": "种子 %(seed)s：%(accuracy)s",
    "What was tried, and why": "尝试了什么，为什么",
    "Learning": "学习过程",
    "One dot an epoch. The training loss is that of altered images and smoothed labels, so it may lie above the validation "
    "loss.": "每个点是一轮。训练损失来自增强后的图像和平滑后的标签，因此可能高于验证损失。",
    "Epoch by epoch": "逐轮记录",
    "Epochs": "各轮",
    "Epoch": "轮次",
    "Image size": "图像尺寸",
    "Training loss": "训练损失",
    "Validation accuracy": "验证准确率",
    "Validation loss": "验证损失",
    "Learning rate": "学习率",
    "Time": "时间",
    "Images/s": "张/秒",
    "Loss, nats": "损失（奈特）",
    "training": "训练",
    "validation": "验证",
    "Learning rate at the end of the epoch": "每轮结束时的学习率",
    "learning rate": "学习率",
    "What is taken for what": "哪些类别被混淆",
    "Rows are the true classes, columns the answers of the kept model. The stronger the colour, the larger the share of the row; "
    "blue is right, copper is wrong. %(wrong)s of %(n)s answers are wrong.": (
        "行是真实类别，列是保留模型的回答。颜色越深，在该行中占比越大；蓝色为正确，铜色为错误。"
        "%(n)s 个回答中有 %(wrong)s 个错误。"
    ),
    "Confusion matrix": "混淆矩阵",
    "All %(n)s classes, in the order of the table below sorted by class: row by row from the top, column by column from the "
    "left": "全部 %(n)s 个类别，顺序与下表按类别排序时相同：自上而下为行，自左而右为列",
    "Confusion matrix as a map; the pairs beside it are its most frequent confusions": (
        "以图表示的混淆矩阵；旁边列出最常见的混淆"
    ),
    "The most frequent confusions": "最常见的混淆",
    "True class": "真实类别",
    "Answer": "回答",
    "Images": "图像数",
    "Of the class": "占该类别",
    "Class by class": "逐类结果",
    "Recall: of the images of a class, how many are recognised, with a 95 %% interval. Precision: of the images given that name, "
    "how many deserve it. The headings sort.": (
        "召回率：某类图像中被认出的比例，附 95 %% 区间。精确率：被判为该类的图像中判对的比例。点击表头可排序。"
    ),
    "Average precision: how well the class ranks its images before the others, whatever the threshold. Threshold: from which "
    "probability on the class is said, set on images kept apart from these.": (
        "平均精度：不论阈值，该类图像排在其他图像之前的程度。阈值：概率达到多少即报出该类，由另外的图像确定。"
    ),
    "Scores by class": "各类得分",
    "Class": "类别",
    "Test images": "测试图像",
    "Recall": "召回率",
    "Precision": "精确率",
    "Average precision": "平均精度",
    "Threshold": "阈值",
    "no test images": "无测试图像",
    "never answered": "从未给出",
    "Worst mistakes": "最严重的错误",
    "Mistakes, image by image": "逐图列出的错误",
    "The images whose classes cost the kept model most loss, with the class it was furthest off in. Look here first for missing "
    "labels.": "保留模型损失最大的图像。若怀疑标签缺失，请先看这里。",
    "The wrong answers that the kept model was surest of. Look here first for wrong labels.": (
        "保留模型最有把握却答错的图像。若怀疑标签有误，请先看这里。"
    ),
    "The second picture shows where the network found its answer (Grad-CAM); below are the training images that look most alike "
    "to it, of %(n)s looked among.": (
        "第二张图显示网络依据的位置（Grad-CAM）；下方是在 %(n)s 张训练图像中网络认为最相似的几张。"
    ),
    "The maps tell of the weights: with shuffled weights they come out otherwise (rank correlation %(similarity)s).": (
        "热图确实反映权重：打乱权重后热图不同（秩相关 %(similarity)s）。"
    ),
    "Do not trust the maps: with shuffled weights they come out nearly the same (rank correlation %(similarity)s).": (
        "不要相信这些热图：打乱权重后几乎不变（秩相关 %(similarity)s）。"
    ),
    "Least certain answers": "最没有把握的回答",
    "is %(label)s": "实为 %(label)s",
    "Confidence": "置信度",
    "Image": "图像",
    "Can the confidence be believed?": "置信度可信吗？",
    "On the test images, confidence and accuracy lie %(after)s apart on average (%(before)s before the temperature of "
    "%(temperature)s, fitted on other images, was applied): the expected calibration error, in 15 bins of confidence.": (
        "在测试图像上，置信度与准确率平均相差 %(after)s（应用在其他图像上拟合的温度 %(temperature)s 之前为 "
        "%(before)s）：即期望校准误差，按置信度分 15 组。"
    ),
    "In bins of equally many images: %(after)s (%(before)s before).": "按图像数均分各组时：%(after)s（之前 %(before)s）。",
    "Reliability diagram: share of right answers by confidence": "可靠性图：各置信度下的正确比例",
    "confidence": "置信度",
    "right": "正确",
    "On the dashed line confidence and accuracy agree. Larger dots hold more images; lines are 95 %% intervals.": (
        "虚线上置信度与准确率一致。点越大图像越多；竖线为 95 %% 区间。"
    ),
    "n = %(n)s: confidence %(confidence)s, right %(right)s": "n = %(n)s：置信度 %(confidence)s，正确 %(right)s",
    "When it should say “unknown”": "何时应回答“未知”",
    "Thresholds come from %(n)s held-out images and travel in the package; what they do was measured on the test images.": (
        "阈值来自 %(n)s 张留出图像并随模型包保存；其效果在测试图像上测得。"
    ),
    "Answering only what is sure": "只回答有把握的",
    "Wanted": "要求",
    "Answered": "作答",
    "Right, of those": "其中正确",
    "too few held-out images to say": "留出图像太少，无法给出",
    "Sets of classes": "类别集合",
    "Hold the true class": "包含真实类别",
    "Classes in a set": "每个集合的类别数",
    "Accuracy of the answers (%), by the share of images answered (%), surest first": (
        "作答部分的准确率（%），按作答比例（%），从最有把握的开始"
    ),
    "Data": "数据",
    "%(scanned)s files scanned = %(used)s used + %(named)s set aside. Of those used, %(train)s train, %(val)s choose (val) and "
    "%(test)s prove (test).": (
        "扫描 %(scanned)s 个文件 = 使用 %(used)s + 搁置 %(named)s。使用的图像中 %(train)s 张训练，%(val)s 张用于选择"
        "（val），%(test)s 张用于证明（test）。"
    ),
    "%(n)s test images are nearly the same picture as one that was trained on or chosen by.": (
        "%(n)s 张测试图像与训练或选择用的图像几乎相同。"
    ),
    "On the others the accuracy is %(value)s (%(low)s to %(high)s, %(n)s images).": (
        "其余图像上的准确率为 %(value)s（%(low)s 至 %(high)s，%(n)s 张）。"
    ),
    "What the audit found": "审查发现",
    "Finding": "发现",
    "Cases": "例数",
    "The first": "前几例",
    "What to do": "如何处理",
    "All cases are in audit.csv; burnish audit writes a page with pictures.": (
        "全部列在 audit.csv 中；burnish audit 可生成带图片的页面。"
    ),
    "Set aside": "搁置的文件",
    "File": "文件",
    "Reason": "原因",
    "And %(n)s more; all are in result.json.": "另有 %(n)s 个；全部在 result.json 中。",
    "Images by class": "各类图像数",
    "Train": "训练",
    "Val": "验证",
    "Test": "测试",
    "Would more images help?": "更多图像有帮助吗？",
    "With %(factor)s times the training images (%(images)s) the frozen probe would be right on about %(accuracy)s (%(low)s to "
    "%(high)s).": (
        "训练图像增至 %(factor)s 倍（%(images)s 张）时，冻结探针的准确率约为 %(accuracy)s（%(low)s 至 %(high)s）。"
    ),
    "Heads were fitted to shares of the training images and judged on %(n)s validation images; the error is carried on as a "
    "power of their number, without a floor, so this is a hopeful view.": (
        "用部分训练图像拟合分类头，在 %(n)s 张验证图像上评判；误差按图像数的幂律外推且不设下限，因此偏乐观。"
    ),
    "measured": "实测",
    "carried on": "外推",
    "Accuracy of the frozen probe (%), by training images": "冻结探针的准确率（%），按训练图像数",
    "Cost": "代价",
    "The model has %(n)s parameters.": "模型有 %(n)s 个参数。",
    "It trained on %(rate)s images a second at %(size)s px, in the last epoch.": (
        "最后一轮以每秒 %(rate)s 张的速度训练，尺寸 %(size)s 像素。"
    ),
    "Parameters": "参数",
    "of them fitted here": "其中在此拟合的",
    "Multiply-adds of one image": "单张图像的乘加次数",
    "Package": "模型包",
    "One image through the network, p50 and p99": "单张图像通过网络的时间，p50 与 p99",
    "Images a second, in batches": "批量处理速度（张/秒）",
    "Peak memory of the run": "运行的内存峰值",
    "Energy of the run": "运行的能耗",
    "not readable here": "本机无法读取",
    "Where the time went": "时间花在哪里",
    "Settings and provenance": "设置与来源",
    "To do this again:": "重做此运行：",
    "Recipe": "配方",
    "Model": "模型",
    "Machine": "机器",
    "Splits": "划分",
    "Classes right by image (Jaccard)": "逐图类别正确度（Jaccard）",
    "Images with every class right": "所有类别都对的图像",
    "Label among the five likeliest": "真实类别在前五名中",
    "Mean recall of the classes": "各类召回率均值",
    "Mean F1 of the classes": "各类 F1 均值",
    "F1 of all classes together": "全部类别合计的 F1",
    "AUROC, mean of each class against the rest": "AUROC（各类对其余的均值）",
    "Log loss, nats (lower is better)": "对数损失（奈特，越低越好）",
    "Brier score, 0 to %(most)s (lower is better)": "Brier 分数，0 至 %(most)s（越低越好）",
}


def words_in(lang: str) -> Say:
    """A function from English to that language. RecipeError for a language that there is not."""
    if lang not in LANGUAGES:
        raise RecipeError(
            f"lang is {shown(repr(lang))}, expected {' or '.join(LANGUAGES)} (nearest: {nearest(lang, LANGUAGES)})"
        )
    return (lambda text: CHINESE.get(text, text)) if lang == "zh" else (lambda text: text)


def verdict_in(lang: str, verdict: Verdict) -> str:
    """The verdict as one sentence."""
    if lang != "zh":
        return verdict.sentence()
    score = "准确率" if verdict.score == ACCURACY else verdict.score
    if verdict.tuned is None or verdict.paired is None:
        low, high = percent(verdict.probe.low), percent(verdict.probe.high)
        found = f"{verdict.probe.n:,} 张测试图像上{score} {percent(verdict.probe.value)}"
        return f"保留冻结探针：{found}（95 % 区间 {low} 至 {high}）。"
    opening = {"better": "微调有效", "worse": "微调有害", "not proven": "未能证明微调有效"}[verdict.word]
    facts, test = verdict.paired, "精确 McNemar 检验" if verdict.score == ACCURACY else "配对自助法"
    return (
        f"{opening}：在相同的 {verdict.probe.n:,} 张测试图像上，{score} {percent(verdict.tuned.value)}，冻结探针为 "
        f"{percent(verdict.probe.value)}（相差 {100 * facts.difference:+.1f} 个百分点，95 % 区间 {100 * facts.low:+.1f} 至 "
        f"{100 * facts.high:+.1f}，{test} {chance(facts.p)}）。"
    )
